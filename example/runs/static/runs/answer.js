"use strict";

// Shows an answer word by word, as the server streams it.

async function show(answer) {
  const response = await fetch(answer.dataset.url);
  const words = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let next = await words.read(); !next.done; next = await words.read()) {
    answer.append(next.value);
  }
}

const answer = document.getElementById("answer");
const button = document.querySelector("[data-run-abort]");

show(answer)
  .catch(() => answer.append(answer.dataset.lost))
  .finally(() => {
    // Once it was clicked, the button shows what came of the abort.
    if (button && !button.dataset.state) button.hidden = true;
  });
