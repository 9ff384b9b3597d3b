// Names for the sliders of an explorer. ipywidgets writes name and value beside a slider, and says neither of its handle.

function name(root) {
  for (const handle of root.querySelectorAll(".noUi-handle")) {
    const row = handle.closest(".widget-inline-hbox");
    handle.setAttribute("aria-label", row?.querySelector(".widget-label")?.textContent ?? "");
    const value = row?.querySelector(".widget-readout")?.textContent;
    if (value) handle.setAttribute("aria-valuetext", value);
  }
}

export default {
  render({ el }) {
    el.style.display = "none";
    let watch = null, gone = false;
    function begin() { // it is drawn before it stands in its explorer
      const root = el.closest(".l2-explorer");
      if (!root) return void (gone || requestAnimationFrame(begin));
      watch = new MutationObserver(() => name(root));
      watch.observe(root, { childList: true, subtree: true, characterData: true });
      name(root);
    }
    begin();
    return () => { gone = true; watch?.disconnect(); };
  },
};
