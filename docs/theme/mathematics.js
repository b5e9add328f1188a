// Typeset what pymdownx.arithmatex has marked, with the KaTeX of this folder; again after each instant page change.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim().replace(/^\\[([]|\\[)\]]$/g, "")
    katex.render(source, element, { displayMode: element.tagName === "DIV", throwOnError: false })
  }
})
