// SPDX-License-Identifier: Apache-2.0
// Keeps the page, and the model it has loaded, for when there is no network, and adds the headers without which
// WebAssembly has one thread. The build puts its files, their hash and the headers in here.
/* BUILD */

const scope = new URL(self.registration.scope)
const SHELL = `hmsa-page ${scope.pathname} ${BUILD.version}`
const MODEL = `hmsa-model ${scope.pathname}`

self.addEventListener('install', (event) => {
  const requests = BUILD.files.map((file) => new Request(new URL(file, scope), { cache: 'reload' }))
  const kept = caches.open(SHELL).then((cache) => cache.addAll(requests))
  event.waitUntil(kept.then(() => self.skipWaiting()))
})

self.addEventListener('activate', (event) => {
  const tidied = caches.keys().then((names) => {
    const old = names.filter((name) => name.startsWith(`hmsa-page ${scope.pathname} `) && name !== SHELL)
    return Promise.all(old.map((name) => caches.delete(name)))
  })
  event.waitUntil(tidied.then(() => self.clients.claim()))
})

self.addEventListener('fetch', (event) => {
  const { request } = event
  const url = new URL(request.url)
  if (request.method !== 'GET' || !url.href.startsWith(scope.href)) return

  // Whatever else its server has is not ours; on localhost it may be another program's by now.
  const path = url.pathname.slice(scope.pathname.length)
  if (path.startsWith('model/')) event.respondWith(modelFile(request, url).then(withHeaders))
  else if (request.mode === 'navigate' && (path === '' || path === 'index.html')) event.respondWith(page(request))
  else if (BUILD.assets.includes(path)) event.respondWith(asset(request).then(withHeaders))
  else if (BUILD.files.includes(path)) event.respondWith(other(request))
})

/** The page that the server has now; where that is another program's, as on localhost, it is left as it is. */
async function page(request) {
  let response
  try {
    response = await fetch(request)
  } catch {
    const cache = await caches.open(SHELL)
    response = await cache.match(scope)
  }
  const text = await response.clone().text()
  return text.includes('content="hmsa deploy/web"') ? withHeaders(response) : response
}

/** A file of the build whose name holds its hash. */
async function asset(request) {
  const cache = await caches.open(SHELL)
  const kept = await cache.match(request)
  if (kept) return kept
  const response = await fetch(request)
  if (response.ok) await keep(cache, request, response)
  return response
}

/** A file of the build by a name that other programs give to theirs. */
async function other(request) {
  try {
    return await fetch(request)
  } catch (error) {
    const cache = await caches.open(SHELL)
    const kept = await cache.match(request)
    if (kept) return kept
    throw error
  }
}

/** A file of the model: by its hash, if the address holds one; else the newest that can be had. */
async function modelFile(request, url) {
  const cache = await caches.open(MODEL)
  const kept = await cache.match(request)
  if (kept && url.searchParams.has('sha256')) return kept
  try {
    const response = await fetch(request, { cache: 'no-cache' })
    if (response.ok) {
      await cache.delete(request, { ignoreSearch: true })
      await keep(cache, request, response)
      return response
    }
    // A server that is there says what is there.
    return response
  } catch (error) {
    if (kept) return kept
    throw error
  }
}

/** There may be no room, and then it is fetched again the next time. */
async function keep(cache, request, response) {
  await cache.put(request, response.clone()).catch(() => {})
}

function withHeaders(response) {
  const headers = new Headers(response.headers)
  for (const [name, value] of Object.entries(BUILD.headers)) headers.set(name, value)
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers })
}
