// SPDX-License-Identifier: Apache-2.0
// Brings the page's tables up to date. They are made, and made harmless, by the server.
"use strict";

const SHOWN_MS = 1000;
const HIDDEN_MS = 15000;
// A server that says nothing for so long is one that does not answer.
const PATIENCE_MS = 5000;
const main = document.getElementById("live");
let timer = 0;
let asking = false;
let pressed = false;

function selecting() {
  const selection = document.getSelection();
  return !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(main);
}

function table(link) {
  return link.closest("table")?.getAttribute("aria-label");
}

// The link that has the focus keeps it: an operation stands in more than one table.
function replace(text) {
  const focused = main.contains(document.activeElement) ? document.activeElement : null;
  main.innerHTML = text;
  if (!focused) return;
  const href = focused.getAttribute("href");
  const same = [...main.querySelectorAll("a")].filter((link) => link.getAttribute("href") === href);
  (same.find((link) => table(link) === table(focused)) ?? same[0])?.focus({ preventScroll: true });
}

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  let fresh = false;
  try {
    const answer = await fetch("/fragment", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) {
      const text = await answer.text();
      const paused = selecting();
      document.body.classList.toggle("paused", paused);
      // A link that goes away under the finger is not followed.
      if (!paused && !pressed) replace(text);
      fresh = true;
    }
  } catch (error) {
    // The server is gone: the next try tells whether it is back.
  }
  document.body.classList.toggle("stale", !fresh);
  asking = false;
  timer = setTimeout(refresh, document.hidden ? HIDDEN_MS : SHOWN_MS);
}

for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
  addEventListener(kind, (event) => {
    pressed = kind !== "pointercancel" && (event.buttons & 1) === 1;
  });
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
timer = setTimeout(refresh, SHOWN_MS);
