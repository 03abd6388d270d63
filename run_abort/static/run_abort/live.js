/*
 * Keeps the page of what runs now up to date while somebody looks at it. Without this script the
 * page is as it was when it was loaded, and its link loads it again.
 */
(() => {
  "use strict";

  if (!window.fetch || !window.AbortSignal || !AbortSignal.timeout) return;

  const INTERVAL = 2000; // ms, from one answer to the next question
  const MAX_WAIT = 20000; // for one answer
  const PATIENCE = 30 * 60000; // with nobody touching the page

  const page = document.querySelector("[data-run-abort-live]");
  if (!page) return;
  const tables = page.querySelector("[data-tables]");
  const status = page.querySelector("[role=status]");
  const button = page.querySelector("button[hidden]");

  let timer = 0;
  let isAsking = false;
  let touched = performance.now();

  function later() {
    clearTimeout(timer);
    timer = setTimeout(refresh, INTERVAL);
  }

  async function refresh() {
    clearTimeout(timer);
    if (isAsking || document.hidden) return; // one that is shown again asks at once
    if (performance.now() - touched > PATIENCE) return stop(page.dataset.unwatched);
    isAsking = true;
    const { news, problem } = await ask();
    isAsking = false;
    if (problem) return stop(problem);
    if (!isInUse()) show(news);
    if (!document.hidden) later();
  }

  /** The new tables, or what to tell. */
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
      // Told as any other failure.
    }
    return { problem: page.dataset.lost };
  }

  /** Whether something would be taken from under the visitor's hands. */
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
    // Only what has changed is read out; that it is up to date is not.
    if (isNew) tell(summary);
    else if (!button.hidden) tell("");
    button.hidden = true;
    status.classList.add("visually-hidden"); // it is above the tables, too
  }

  /** What took the place of an element that had the focus. */
  function successor(gone) {
    if (gone.name) return [...tables.querySelectorAll("button")].find((each) => each.value === gone.value);
    const label = gone.getAttribute("aria-labelledby");
    return [...tables.querySelectorAll("[role=region]")].find(
      (each) => each.getAttribute("aria-labelledby") === label,
    );
  }

  function stop(text) {
    tell(text);
    status.classList.remove("visually-hidden");
    button.hidden = false;
  }

  function tell(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  function goOn() {
    touched = performance.now();
    refresh();
  }

  button.addEventListener("click", goOn);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else goOn();
  });
  for (const name of ["pointermove", "pointerdown", "keydown", "scroll"]) {
    document.addEventListener(name, () => (touched = performance.now()), { passive: true });
  }
  later();
})();
