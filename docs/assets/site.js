// Of the groups in the navigation one is open at a time.
document.querySelectorAll(".md-nav--primary > .md-nav__list > .md-nav__item--nested > .md-nav__toggle").forEach(
  (toggle, _, all) =>
    toggle.addEventListener("change", () => {
      if (toggle.checked) all.forEach((other) => other !== toggle && (other.checked = false));
    })
);
