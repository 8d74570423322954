/* Search in pages that are opened from a folder. Browsers start no Worker there, so a hidden frame runs its script.
   Without this file Material's plugin `offline` would fetch one from elsewhere. */
class FrameWorker extends EventTarget {
  constructor(address) {
    super()
    const frame = document.createElement("iframe")
    frame.hidden = true
    document.body.appendChild(frame)
    this.inside = frame.contentWindow
    addEventListener("message", event => {
      if (event.source === this.inside) this.dispatchEvent(new MessageEvent("message", { data: event.data }))
    })
    const [own, script] = ["script", "script"].map(name => frame.contentDocument.createElement(name))
    own.textContent = "postMessage = answer => parent.postMessage(answer, '*')" // so the frame is the answer's source
    frame.contentDocument.body.appendChild(own)
    this.ready = new Promise(done => { script.onload = done })
    script.src = address
    frame.contentDocument.body.appendChild(script)
  }

  postMessage(question) {
    this.ready.then(() => window.postMessage.call(this.inside, question, "*"))
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker
