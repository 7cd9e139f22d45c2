/* Figures open large: at their own width, in a dialog that scrolls. A press or Escape closes it. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.body.appendChild(document.createElement("dialog"));
  dialog.className = "large";
  dialog.addEventListener("click", () => dialog.close());
  for (const image of document.querySelectorAll("article img:not(a img, .card img)")) {
    if (image.closest(".cell_output:has(.explorer)")) continue; // its static figure is hidden
    const link = document.createElement("a");
    Object.assign(link, { className: "large", href: image.src, title: "Open the figure large" });
    image.replaceWith(link);
    link.append(image);
    link.addEventListener("click", event => {
      event.preventDefault();
      const large = Object.assign(new Image(), { src: image.src, alt: image.alt });
      large.style.width = `${Math.max(image.naturalWidth, 860)}px`;
      dialog.replaceChildren(large);
      dialog.showModal();
    });
  }
});
