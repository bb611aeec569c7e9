// Starts the 3-D views of a page when they are opened: the code lies in the page, compressed, and nothing is fetched.
"use strict";
(() => {
  const unpacked = (text) => Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  let code = null;

  function loaded() {
    code ??= (async () => {
      const packed = unpacked(document.querySelector("[data-viewer-code]").textContent);
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" });
      const address = URL.createObjectURL(script);
      try {
        return await import(address);
      } finally {
        URL.revokeObjectURL(address);
      }
    })();
    return code;
  }

  function say(root, sentence) {
    const place = root.querySelector("[data-message]");
    place.textContent = sentence;
    place.hidden = false;
  }

  async function start(root, button, asked) {
    if (!window.WebGL2RenderingContext || !document.createElement("canvas").getContext("webgl2")) {
      button.hidden = true;
      say(root, "This browser has no WebGL 2, which the 3-D view needs. Another browser, or hardware acceleration in this one's settings, will show it.");
      return;
    }
    button.disabled = true;
    try {
      const viewer = await loaded();
      root.querySelector("[data-closed]").hidden = true;
      root.querySelector("[data-opened]").hidden = false;
      await viewer.open(root, JSON.parse(root.querySelector("[data-scene]").textContent));
      root.dataset.ready = "true";
      if (asked) root.querySelector("canvas").focus({ preventScroll: true });
    } catch (error) {
      root.querySelector("[data-closed]").hidden = false;
      root.querySelector("[data-opened]").hidden = true;
      button.disabled = false;
      say(root, `The 3-D view could not be started: ${error.message}`);
    }
  }

  for (const root of document.querySelectorAll("[data-viewer]")) {
    const button = root.querySelector("[data-open]");
    button.hidden = false;
    root.querySelector("[data-message]").hidden = true;
    button.addEventListener("click", () => start(root, button, true));
    if (root.dataset.viewer === "open") start(root, button, false);
  }
})();
