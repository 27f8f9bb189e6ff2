// Of the groups in the navigation one is open at a time.
document.querySelectorAll(".md-nav--primary > .md-nav__list > .md-nav__item--nested > .md-nav__toggle").forEach(
  (toggle, _, all) =>
    toggle.addEventListener("change", () => {
      if (toggle.checked) all.forEach((other) => other !== toggle && (other.checked = false));
    })
);

// What the theme leaves without a name or out of the keyboard's reach. It adds some of it later.
function complete() {
  document.querySelector(".md-search:not([aria-label])")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((nav) =>
    nav.setAttribute("aria-label", "Copy " + (nav.querySelector("button")?.dataset.clipboardTarget ?? "")));
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((box) => (box.tabIndex = 0));
}
complete();
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
