"use strict";

// Keeps the page of a run up to date, and aborts without leaving it. The page works without.

const POLL_EVERY = 500; // milliseconds
const RETRY_EVERY = 2000;

const run = document.getElementById("run");
const problem = document.getElementById("problem");
const abortForm = document.getElementById("abort");

let timer; // of the next poll
let asking = false; // whether a request to abort is on its way

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
  for (const shard of progress.shards) {
    const row = run.querySelector(`.shard[data-number="${shard.number}"]`);
    if (!row) continue;
    row.dataset.state = shard.state;
    const bar = row.querySelector("progress");
    bar.max = shard.total || 1;
    bar.value = shard.done;
    setText(row.querySelector(".files"), shard.files);
    setText(row.querySelector(".note"), shard.note);
  }
  showMeasures(progress.measures);
  if (!abortForm) return;
  abortForm.hidden = progress.over;
  abortForm.querySelector("button").disabled = asking || progress.request !== "";
}

function showMeasures(measures) {
  const rows = measures.map(([label, value]) => {
    const row = document.createElement("div");
    row.append(document.createElement("dt"), document.createElement("dd"));
    row.firstChild.textContent = label;
    row.lastChild.textContent = value;
    return row;
  });
  document.getElementById("measures").replaceChildren(...rows);
}

async function poll() {
  clearTimeout(timer);
  let delay = POLL_EVERY;
  try {
    const response = await fetch(run.dataset.progressUrl, {
      headers: { Accept: "application/json" },
    });
    if (response.redirected) {
      complain(run.dataset.loggedOut);
      return;
    }
    if (!response.ok) throw new Error(response.statusText);
    const progress = await response.json();
    show(progress);
    if (problem.textContent === run.dataset.lost) complain("");
    if (progress.over) return;
  } catch {
    complain(run.dataset.lost);
    delay = RETRY_EVERY;
  }
  clearTimeout(timer);
  timer = setTimeout(poll, delay);
}

async function abort(event) {
  event.preventDefault();
  const button = abortForm.querySelector("button");
  button.disabled = asking = true;
  complain("");
  try {
    const response = await fetch(abortForm.action, {
      method: "POST",
      headers: { Accept: "application/json" },
      body: new FormData(abortForm),
    });
    const answer = await response.json().catch(() => ({}));
    if (!answer.ok) throw new Error(answer.error || response.statusText);
  } catch (error) {
    button.disabled = false;
    complain(error instanceof TypeError ? run.dataset.lost : error.message);
  }
  asking = false;
  poll();
}

if (abortForm) abortForm.addEventListener("submit", abort);
if (run.dataset.over === "no") poll();
