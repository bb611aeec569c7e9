// Brightens the pictures on the screen; their pixels stay what they are.
"use strict";
(() => {
  const tone = document.getElementById("tone");
  if (!tone) return;
  const slider = tone.querySelector("input"), said = tone.querySelector("output");
  slider.addEventListener("input", () => {
    document.documentElement.style.setProperty("--brightness", slider.value / 100);
    said.textContent = `${slider.value}\u202f%`;
  });
  tone.hidden = false;
})();
