// SPDX-License-Identifier: Apache-2.0

const WAIT = 10_000 // milliseconds

/** Let the service worker take the page over, so that all it loads from here on is kept for when there is no network.
 *
 * Where the server sends no COOP and COEP, the page is loaded once more, as the service worker sends them.
 */
export async function underServiceWorker() {
  const container = navigator.serviceWorker // only on https and localhost
  if (!import.meta.env.PROD || !container) return
  try {
    const registration = await container.register('sw.js')
    // A page that was loaded past the service worker (Shift and reload) stays so.
    if (!container.controller && !registration.active) await takenOver(container)
    if (crossOriginIsolated) sessionStorage.removeItem('reloaded')
    else if (container.controller && !sessionStorage.getItem('reloaded')) {
      sessionStorage.setItem('reloaded', 'yes')
      location.reload()
      await new Promise(() => {})
    }
  } catch {
    // Private windows may have none: everything but working offline goes on.
  }
}

function takenOver(container: ServiceWorkerContainer) {
  return new Promise<void>((resolve) => {
    container.addEventListener('controllerchange', () => resolve(), { once: true })
    setTimeout(resolve, WAIT)
  })
}
