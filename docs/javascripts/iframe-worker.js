/* Search from a folder: a page opened as file:// may start no worker, so the worker's script runs
   in a hidden frame of the page instead. Over HTTP nothing changes. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html><body></body>"
      frame.addEventListener("load", () => {
        const inner = frame.contentWindow
        inner.postMessage = data => setTimeout(() =>
          this.dispatchEvent(new MessageEvent("message", { data })))
        const script = inner.document.createElement("script")
        script.src = url
        script.addEventListener("load", () => {
          this.inner = inner
          this.waiting.splice(0).forEach(data => this.postMessage(data))
        })
        inner.document.body.append(script)
      }, { once: true })
      document.body.append(frame)
    }

    postMessage(data) {
      if (this.inner) this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
  }
}
