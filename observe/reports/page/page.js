// SPDX-License-Identifier: Apache-2.0
// The page around the timelines: light or dark, timelines made when they are looked at, links that open them.
"use strict";

function mountTimelines(elements) {
  const data = elements.map((element) => JSON.parse(document.getElementById(element.dataset.source).textContent));
  // Those of one group share a time axis.
  const view = elements.length > 1 ? new TimelineView(Math.max(...data.map((one) => one.extent_ns))) : undefined;
  elements.forEach((element, index) => new Timeline(element, data[index], { view, label: element.dataset.label }));
}

function mountVisible() {
  const groups = Map.groupBy(
    [...document.querySelectorAll("[data-source]")].filter((element) => !element.timeline && !element.closest("details:not([open])")),
    (element) => element.dataset.group || element.dataset.source,
  );
  for (const elements of groups.values()) mountTimelines(elements);
}

function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target || target.tagName !== "DETAILS") return;
  target.open = true;
  mountVisible();
  target.scrollIntoView();
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  for (const element of document.querySelectorAll(".timeline")) element.timeline.restyle();
}

document.querySelector(".theme").hidden = false;
document.querySelector(".theme").addEventListener("click", switchTheme);
for (const element of document.querySelectorAll("details")) element.addEventListener("toggle", mountVisible);
window.addEventListener("hashchange", openTarget);
mountVisible();
openTarget();
