/*
 * Requests the abort without leaving the page and shows its progress, also after the page was
 * loaded again, or a script such as htmx has replaced the button. Without this script the button's
 * form works as a plain HTML form.
 *
 * When the abort was asked for, and after each response of the progress view, the button's element
 * dispatches the event "run-abort:progress", which bubbles. Its `detail` is the response: runId,
 * requestId, state, over, processes, stopped, lost, text. The first has no numbers of processes.
 */
(() => {
  "use strict";

  if (!window.fetch || !window.AbortSignal || !AbortSignal.timeout) return;

  const LOADED = Symbol.for("run_abort");
  if (document[LOADED]) return; // a page or a script such as htmx has loaded it twice
  document[LOADED] = true;

  const FIRST_DELAY = 250; // ms
  const MAX_DELAY = 2000;
  const MAX_WAIT = 20000; // for one response
  const PATIENCE = 180000; // for following one abort
  const UNCLEAR = ["asked", "lost"]; // if one of these is final, offer to request again

  // What each button is about. A script that morphs the page, such as Turbo, gives the element of one
  // run to another run, and takes away what this script has written into it.
  const known = new WeakMap();

  // Scripts also dispatch events at the document itself, which is no element: hence "?.".
  document.addEventListener("submit", (event) => {
    const box = event.target.closest?.("[data-run-abort]");
    if (!box || event.defaultPrevented) return;
    event.preventDefault();
    abort(box, event.target);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close(event.target);
  });

  document.addEventListener("click", (event) => {
    if (event.target.matches?.(".run-abort-cancel")) close(event.target);
  });

  // It does not bubble.
  document.addEventListener("toggle", (event) => opened(event.target), { capture: true });

  function close(element) {
    const details = element.closest?.("[data-run-abort] details[open]");
    if (!details) return;
    details.open = false;
    details.querySelector("summary").focus();
  }

  function opened(details) {
    if (!details.open || !details.matches?.("[data-run-abort] details")) return;
    details.querySelector(".run-abort-cancel").hidden = false;
    details.querySelector("input:not([type=hidden])").focus();
  }

  async function abort(box, form) {
    const button = form.querySelector("[type=submit]");
    if (button.disabled) return;
    button.disabled = true;
    const run = known.get(box);
    show(box, "asking", box.dataset.asking);
    const body = new URLSearchParams(new FormData(form));
    const { status, data } = await ask(form.action, { method: "POST", body });
    if (status !== 202) {
      if (box.dataset.progress !== run.progress) return;
      button.disabled = false;
      show(box, "failed", data.error || failure(box, status));
      return;
    }
    const { runId, requestId } = data;
    remember(run, requestId);
    if (!isAbout(box, run)) return twins(run).forEach(resume);
    const details = box.querySelector("details");
    const hadFocus = details.contains(document.activeElement) || document.activeElement === document.body;
    details.hidden = true;
    if (hadFocus) box.querySelector("[role=status]").focus();
    report(box, { runId, requestId, state: "asked", over: false, text: box.dataset.asked });
    if (run.progress) await watch(box, requestId);
  }

  /** Care for the buttons that are new on the page, and for those that were morphed. */
  function adopt() {
    for (const box of document.querySelectorAll("[data-run-abort]")) {
      const { progress, state } = known.get(box) ?? {};
      if (progress !== box.dataset.progress || state !== box.dataset.state) resume(box);
    }
  }

  /** Whether the button is on the page, and is still about `run`. */
  function isAbout(box, run) {
    return box.isConnected && known.get(box) === run;
  }

  /** The buttons of a run, such as one that has replaced another. */
  function twins(run) {
    const boxes = document.querySelectorAll("[data-run-abort]");
    return [...boxes].filter((each) => each.dataset.progress === run.progress);
  }

  /** After a reload or a replacement, continue to follow what this tab has asked for. */
  function resume(box) {
    if (box.dataset.state) {
      // A copy of another page's, such as from the cache of Turbo: what it says may be long over.
      delete box.dataset.state;
      box.querySelector("[role=status]").textContent = "";
      offer(box);
    }
    const run = { progress: box.dataset.progress };
    known.set(box, run);
    const requestId = remembered(run);
    if (!requestId) return;
    box.querySelector("details").hidden = true;
    show(box, "asked", box.dataset.asked);
    watch(box, requestId, { isResumed: true });
  }

  async function watch(box, requestId, { isResumed = false } = {}) {
    const run = known.get(box);
    const url = `${run.progress}?${new URLSearchParams({ abort: requestId })}`;
    const until = performance.now() + PATIENCE;
    let text = box.dataset.asked;
    for (let delay = FIRST_DELAY; ; delay = Math.min(delay * 1.5, MAX_DELAY)) {
      await pause(delay);
      if (!isAbout(box, run)) return;
      const { status, data } = await ask(url);
      if (!isAbout(box, run)) return;
      if (status === 200) {
        text = data.text;
        report(box, data);
        if (data.over && UNCLEAR.includes(data.state)) break;
        if (data.over) {
          remember(run, "");
          if (isResumed) offer(box); // over before the button was made: it is for a new start
          return;
        }
        isResumed = false;
      } else if (status === 401) {
        show(box, "failed", box.dataset.loggedOut);
        return;
      } else if (status >= 400 && status < 500 && status !== 429) {
        break; // no access to the progress view, or the request was pruned
      } else {
        show(box, box.dataset.state, data.error || box.dataset.lost);
      }
      if (performance.now() > until) break;
    }
    remember(run, "");
    show(box, "unwatched", `${text} ${box.dataset.unwatched}`);
    offer(box);
  }

  function offer(box) {
    const details = box.querySelector("details");
    details.open = false;
    details.hidden = false;
    details.querySelector("[type=submit]").disabled = false;
  }

  /** Status and JSON of the response; status 0 without a response, 401 for a redirect to a login. */
  async function ask(url, options) {
    try {
      const response = await fetch(url, {
        headers: { Accept: "application/json" },
        credentials: "same-origin",
        cache: "no-store",
        redirect: "manual",
        signal: AbortSignal.timeout(MAX_WAIT),
        ...options,
      });
      if (response.type === "opaqueredirect") return { status: 401, data: {} };
      const isJson = /^application\/json\b/.test(response.headers.get("Content-Type"));
      const data = isJson ? await response.json() : null; // a proxy may say "null", too
      return { status: response.status, data: data ?? {} };
    } catch {
      return { status: 0, data: {} };
    }
  }

  function failure(box, status) {
    if (status === 401) return box.dataset.loggedOut;
    return status >= 400 && status < 500 ? box.dataset.refused : box.dataset.unreachable;
  }

  function report(box, detail) {
    show(box, detail.state, detail.text);
    box.dispatchEvent(new CustomEvent("run-abort:progress", { bubbles: true, detail }));
  }

  function show(box, state, text) {
    const status = box.querySelector("[role=status]");
    box.dataset.state = state;
    known.get(box).state = state;
    // Screen readers announce every assignment, also of the same text.
    if (status.textContent !== text) status.textContent = text;
  }

  // In the storage of the tab, to which a browser may refuse access.

  function remember(run, requestId) {
    try {
      if (run.progress) sessionStorage.setItem(`run-abort:${run.progress}`, requestId);
    } catch {
      // Then a reload shows the button.
    }
  }

  function remembered({ progress }) {
    try {
      return progress && sessionStorage.getItem(`run-abort:${progress}`);
    } catch {
      return null;
    }
  }

  /** Resolves after `delay` ms, or later, when the page becomes visible. */
  function pause(delay) {
    return new Promise((resolve) => {
      setTimeout(() => {
        if (!document.hidden) return resolve();
        document.addEventListener("visibilitychange", resolve, { once: true });
      }, delay);
    });
  }

  adopt();
  new MutationObserver(adopt).observe(document, {
    attributeFilter: ["data-progress", "data-state"],
    childList: true,
    subtree: true,
  });
})();
