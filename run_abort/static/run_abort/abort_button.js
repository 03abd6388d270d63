/*
 * Asks to abort without leaving the page, and shows what becomes of it. Without this script the
 * form of the button works as any other.
 *
 * Whenever there is news, the button's element sends "run-abort:progress", which bubbles; its
 * `detail` is what the server answered: runId, abortId, state, over, processes, stopped,
 * unanswered, text.
 */
(() => {
  "use strict";

  if (!window.fetch || !window.AbortSignal || !AbortSignal.timeout) return;

  const FIRST_DELAY = 250; // ms
  const MAX_DELAY = 2000;
  const MAX_WAIT = 20000; // for one answer
  const PATIENCE = 180000; // with one abort
  const UNCLEAR = ["asked", "aborting"]; // nobody may have stopped, even if it is over

  document.addEventListener("submit", (event) => {
    const box = event.target.closest("[data-run-abort]");
    if (!box || event.defaultPrevented) return;
    event.preventDefault();
    abort(box, event.target);
  });

  document.addEventListener("keydown", (event) => {
    const details = event.key === "Escape" && event.target.closest("[data-run-abort] details[open]");
    if (!details) return;
    details.open = false;
    details.querySelector("summary").focus();
  });

  async function abort(box, form) {
    const button = form.querySelector("button");
    if (button.disabled) return;
    button.disabled = true;
    show(box, "asking", box.dataset.asking);
    const body = new URLSearchParams(new FormData(form));
    const { status, data } = await ask(form.action, { method: "POST", body });
    if (status !== 202) {
      button.disabled = false;
      show(box, "failed", data.error || failure(box, status));
      return;
    }
    const details = box.querySelector("details");
    const hadFocus = details.contains(document.activeElement) || document.activeElement === document.body;
    details.hidden = true;
    if (hadFocus) box.querySelector("[role=status]").focus();
    const { runId, abortId } = data;
    tell(box, { runId, abortId, state: "asked", over: false, text: box.dataset.asked });
    if (box.dataset.progress) await watch(box, abortId);
  }

  async function watch(box, abortId) {
    const url = `${box.dataset.progress}?${new URLSearchParams({ abort: abortId })}`;
    const until = performance.now() + PATIENCE;
    let text = box.dataset.asked;
    for (let delay = FIRST_DELAY; ; delay = Math.min(delay * 1.5, MAX_DELAY)) {
      await pause(delay);
      if (!box.isConnected) return;
      const { status, data } = await ask(url);
      if (status === 200) {
        text = data.text;
        tell(box, data);
        if (data.over && UNCLEAR.includes(data.state)) break;
        if (data.over) return;
      } else if (status === 401) {
        show(box, "failed", box.dataset.loggedOut);
        return;
      } else if (status >= 400 && status < 500 && status !== 429) {
        return; // nobody here may know more than that it was asked
      } else {
        show(box, box.dataset.state, box.dataset.lost);
      }
      if (performance.now() > until) break;
    }
    show(box, "unwatched", `${text} ${box.dataset.unwatched}`);
    const details = box.querySelector("details");
    details.open = false;
    details.hidden = false;
    details.querySelector("button").disabled = false;
  }

  /** The status of the answer and its JSON; 0 without an answer, 401 if it leads to a login. */
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
      return { status: response.status, data: isJson ? await response.json() : {} };
    } catch {
      return { status: 0, data: {} };
    }
  }

  function failure(box, status) {
    if (status === 401) return box.dataset.loggedOut;
    return status >= 400 && status < 500 ? box.dataset.refused : box.dataset.unreachable;
  }

  function tell(box, detail) {
    show(box, detail.state, detail.text);
    box.dispatchEvent(new CustomEvent("run-abort:progress", { bubbles: true, detail }));
  }

  function show(box, state, text) {
    const status = box.querySelector("[role=status]");
    box.dataset.state = state;
    // What is written anew is read out anew.
    if (status.textContent !== text) status.textContent = text;
  }

  /** Resolves after `delay` ms, once the page is seen. */
  function pause(delay) {
    return new Promise((resolve) => {
      setTimeout(() => {
        if (!document.hidden) return resolve();
        document.addEventListener("visibilitychange", resolve, { once: true });
      }, delay);
    });
  }
})();
