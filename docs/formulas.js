/* Sets the formulas of a page with KaTeX: pymdownx.arithmatex writes them between \( and \), or \[ and \]. */
for (const formula of document.querySelectorAll(".arithmatex")) {
  const tex = formula.textContent.trim();
  katex.render(tex.slice(2, -2), formula, { displayMode: tex.startsWith("\\["), throwOnError: false });
}
