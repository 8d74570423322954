/* Names and stops of the keyboard that axe asks for and the theme leaves out; parts of a page are made after it. */
const name = (element, text) => element.hasAttribute("aria-label") || element.setAttribute("aria-label", text)

const complete = () => {
  document.querySelectorAll(".md-search").forEach(found => name(found, "Search"))
  document.querySelectorAll("#__search, #__drawer").forEach(found => name(found, found.dataset.mdToggle))
  document.querySelectorAll(".md-code__nav").forEach((found, place) => name(found, `Block ${place + 1}`))
  document.querySelectorAll(".md-nav[aria-labelledby]").forEach(found => {
    name(found, document.getElementById(found.getAttribute("aria-labelledby")).textContent.trim())
  })
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach(found => { found.tabIndex = 0 })
}

new MutationObserver(complete).observe(document.body, { childList: true, subtree: true })
complete()
