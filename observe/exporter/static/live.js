// SPDX-License-Identifier: Apache-2.0
// Brings the page's tables up to date. They are made, and made harmless, by the server.
"use strict";

const SHOWN_MS = 1000;
const HIDDEN_MS = 15000;
const main = document.getElementById("live");

function reading() {
  // Text that is being selected, or a link that has the focus, must not be replaced.
  return !document.getSelection().isCollapsed || main.contains(document.activeElement);
}

async function refresh() {
  let fresh = false;
  try {
    const answer = await fetch("/fragment", { cache: "no-store" });
    if (answer.ok) {
      const text = await answer.text();
      if (!reading()) main.innerHTML = text;
      fresh = true;
    }
  } catch (error) {
    // The server is gone: the next try tells whether it is back.
  }
  document.body.classList.toggle("stale", !fresh);
  setTimeout(refresh, document.hidden ? HIDDEN_MS : SHOWN_MS);
}

setTimeout(refresh, SHOWN_MS);
