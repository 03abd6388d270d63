/*
 * Refreshes the page "Running now" while it is visible and in use. Without this script the page
 * stays as loaded, and its link reloads it.
 */
(() => {
  "use strict";

  if (!window.fetch || !window.AbortSignal || !AbortSignal.timeout) return;

  const INTERVAL = 2000; // ms, from one response to the next request
  const MAX_WAIT = 20000; // for one response
  const PATIENCE = 30 * 60000; // without input from the visitor

  const page = document.querySelector("[data-run-abort-live]");
  if (!page) return;
  const tables = page.querySelector("[data-tables]");
  const status = page.querySelector("[role=status]");
  const button = page.querySelector("button[hidden]");

  let timer = 0;
  let isAsking = false;
  let touched = performance.now();

  async function refresh() {
    clearTimeout(timer);
    if (isAsking || document.hidden) return; // visibilitychange refreshes at once
    if (performance.now() - touched > PATIENCE) return stop(page.dataset.unwatched);
    isAsking = true;
    const { news, problem } = await ask();
    isAsking = false;
    if (problem) return stop(problem);
    if (!isInUse()) show(news);
    timer = setTimeout(refresh, INTERVAL);
  }

  /** The new tables, or the problem to show. */
  async function ask() {
    try {
      const response = await fetch(page.dataset.fragment, {
        credentials: "same-origin",
        cache: "no-store",
        redirect: "manual",
        signal: AbortSignal.timeout(MAX_WAIT),
      });
      const isGone = response.type === "opaqueredirect" || response.status === 403;
      if (isGone) return { problem: page.dataset.loggedOut };
      const text = response.ok ? await response.text() : "";
      const news = new DOMParser().parseFromString(text, "text/html").body;
      if (news.querySelector("[data-summary]")) return { news };
    } catch {
      // Reported below, like every other failure.
    }
    return { problem: page.dataset.lost };
  }

  /** Whether the visitor is selecting text or pressing a button, which an update would interrupt. */
  function isInUse() {
    const selection = getSelection();
    const isSelecting = !selection.isCollapsed && tables.contains(selection.anchorNode);
    return isSelecting || tables.querySelector("button:active") !== null;
  }

  function show(news) {
    const focused = document.activeElement;
    const scrolled = [...tables.querySelectorAll("[role=region]")];
    const left = new Map(scrolled.map((each) => [each.getAttribute("aria-labelledby"), each.scrollLeft]));
    const hadFocus = focused === button || (tables.contains(focused) && focused !== tables);
    const summary = news.querySelector("[data-summary]").textContent;
    const isNew = summary !== tables.querySelector("[data-summary]").textContent;

    tables.replaceChildren(...news.childNodes);

    for (const each of tables.querySelectorAll("[role=region]")) {
      each.scrollLeft = left.get(each.getAttribute("aria-labelledby")) ?? 0;
    }
    if (hadFocus) (successor(focused) ?? tables).focus({ preventScroll: true });
    // Announce only changes, not every refresh.
    if (isNew) announce(summary);
    else if (!button.hidden) announce("");
    button.hidden = true;
    status.classList.add("run-abort-unseen"); // the summary above the tables shows it
  }

  /** The element that replaces one that had the focus: a link, a button, or a table that scrolls. */
  function successor(gone) {
    const tag = gone.cloneNode(false); // without what is in it
    const found = [...tables.querySelectorAll("a, button, [role=region]")];
    return found.find((each) => each.cloneNode(false).isEqualNode(tag));
  }

  function stop(text) {
    announce(text);
    status.classList.remove("run-abort-unseen");
    button.hidden = false;
  }

  function announce(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  function goOn() {
    touched = performance.now();
    refresh();
  }

  button.addEventListener("click", goOn);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) goOn();
  });
  for (const name of ["pointermove", "pointerdown", "keydown", "scroll"]) {
    document.addEventListener(name, () => (touched = performance.now()), { passive: true });
  }
  timer = setTimeout(refresh, INTERVAL);
})();
