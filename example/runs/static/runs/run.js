"use strict";

// Keeps the page of a run up to date. Without this script, load the page again.

const POLL_EVERY = 500; // milliseconds
const RETRY_EVERY = 2000;

const run = document.getElementById("run");
const problem = document.getElementById("problem");

let timer; // of the next poll
let polling = false;

function setText(element, text) {
  // Written only when it changes, or a screen reader would read it out each time.
  if (element.textContent !== text) element.textContent = text;
}

function complain(text) {
  problem.hidden = !text;
  setText(problem, text);
}

function show(progress) {
  const state = document.getElementById("state");
  state.dataset.state = progress.state;
  setText(state, progress.label);
  setText(document.getElementById("request"), progress.request);
  for (const part of progress.parts) {
    const row = run.querySelector(`.part[data-number="${part.number}"]`);
    if (!row) continue;
    row.dataset.state = part.state;
    row.querySelector("progress").value = part.done;
    setText(row.querySelector(".amount"), part.amount);
    setText(row.querySelector(".note"), part.note);
  }
  showTimeline(progress.timeline);
  const button = run.querySelector("[data-run-abort]");
  // Once it was clicked, the button shows what came of the abort.
  if (button && !button.dataset.state) button.hidden = progress.over;
}

function showTimeline(events) {
  const section = document.getElementById("timeline");
  section.hidden = !events.length;
  const rows = events.map((event) => {
    const row = document.createElement("tr");
    row.dataset.state = event.state;
    for (const text of [event.after, event.who, event.what]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  section.querySelector("tbody").replaceChildren(...rows);
}

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  const delay = await look();
  polling = false;
  if (delay) timer = setTimeout(poll, delay);
}

/** How many milliseconds later to look again, if ever. */
async function look() {
  try {
    const response = await fetch(run.dataset.progressUrl, {
      headers: { Accept: "application/json" },
    });
    if (response.redirected) {
      complain(run.dataset.loggedOut);
      return 0;
    }
    if (!response.ok) throw new Error(response.statusText);
    const progress = await response.json();
    show(progress);
    complain("");
    return progress.settled ? 0 : POLL_EVERY;
  } catch {
    complain(run.dataset.lost);
    return RETRY_EVERY;
  }
}

run.addEventListener("run-abort:progress", poll);
if (run.dataset.settled === "no") poll();
