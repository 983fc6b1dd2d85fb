// SPDX-License-Identifier: Apache-2.0
// Drives the built page in Chromium, and prints what it found as JSON; tests/deploy/test_web.py judges it.
//
//   node test/browser.mjs labels|page PYTHON CHROMIUM FOLDER OUTPUT IMAGE...
//
// labels: the labels of the images, as OUTPUT/<image>. page: all else, with the first image.
import { spawn } from 'node:child_process'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const [what, python, executablePath, folder, output, ...images] = process.argv.slice(2)
const here = fileURLToPath(new URL('..', import.meta.url))
const axe = readFileSync(join(here, 'node_modules/axe-core/axe.min.js'), 'utf8')
const ARGS = [
  ...['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'],
  ...['--disable-component-update', '--disable-sync', '--use-fake-device-for-media-stream'],
  '--use-fake-ui-for-media-stream',
]
const SECONDS = 1000

const servers = []
const browser = await chromium.launch({ executablePath, args: ARGS })
try {
  const found = await (what === 'labels' ? labels() : page())
  console.log(JSON.stringify(found))
} finally {
  await browser.close()
  for (const server of servers) server.kill()
}

async function labels() {
  const { page, errors } = await visit(await serve())
  await saveLabels(page, images)
  return { errors }
}

async function page() {
  const server = await serve()
  const { page, errors, requested } = await visit(server)
  const found = { errors, requested, serious: {} }
  found.serious.empty = await serious(page)
  await saveLabels(page, images.slice(0, 1))
  found.facts = await page.locator('#facts').innerText()
  found.serious.light = await serious(page)
  found.keyboard = await keyboard(page)
  found.legend = await legend(page)
  found.camera = await camera(page)
  found.wrongFile = await wrongFile(page)
  found.others = await others(page)
  found.offline = await offline(page, server)
  found.narrow = await narrow(page)
  found.serious.dark = await serious(page)

  // A host that sends no headers: the service worker does, from the second load on.
  const plain = await visit(await serve('--plain'))
  found.plain = { isolated: await plain.page.evaluate(() => crossOriginIsolated), errors: plain.errors }

  const url = await serve()
  const isOther = { status: 404, body: 'not found' }
  found.noModel = await broken(url, (page) => page.route('**/model/deploy.yaml', (route) => route.fulfill(isOther)))
  const cut = { body: readFileSync(join(folder, 'model/model.onnx')).subarray(0, 4000) }
  found.damaged = await broken(url, (page) => page.route('**/model.onnx*', (route) => route.fulfill(cut)))
  return found
}

async function serve(...flags) {
  const server = spawn(python, [join(here, 'serve.py'), '--folder', folder, '--port', '0', ...flags])
  servers.push(server)
  server.stderr.pipe(process.stderr)
  const line = await new Promise((resolve, reject) => {
    server.stdout.once('data', (data) => resolve(String(data)))
    server.once('exit', (status) => reject(new Error(`the server ended with status ${status}`)))
  })
  return line.trim()
}

/** The page, ready; with what it complains of, and where it asks for something. */
async function visit(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, ...options })
  const page = await context.newPage()
  const [errors, requested] = [[], []]
  page.on('pageerror', (error) => errors.push(String(error)))
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()))
  context.on('request', (request) => requested.push(request.url()))
  await page.goto(url)
  await page.getByText('Ready.').waitFor({ timeout: 60 * SECONDS })
  return { page, errors, requested }
}

async function saveLabels(page, images) {
  for (const image of images) {
    const name = basename(image)
    await page.locator('#file').setInputFiles(image)
    await page.getByText(`${name}: `).waitFor({ timeout: 60 * SECONDS })
    const [download] = await Promise.all([page.waitForEvent('download'), page.locator('#download').click()])
    await download.saveAs(join(output, name))
  }
}

async function serious(page) {
  await page.evaluate(axe)
  const { violations } = await page.evaluate(() => globalThis.axe.run())
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 120)).join(' | ')}`)
}

/** Without a mouse: through the views, along a slider, over the picture. */
async function keyboard(page) {
  const focused = () =>
    page.evaluate(() => {
      const style = getComputedStyle(document.activeElement)
      return { id: document.activeElement.id, outline: style.outlineStyle, width: parseFloat(style.outlineWidth) }
    })
  const order = []
  await page.locator('body').click({ position: { x: 2, y: 2 } })
  for (let at = 0; at < 12; at++) {
    await page.keyboard.press('Tab')
    order.push(await focused())
  }
  await page.locator('input[value=classes]').focus()
  await page.keyboard.press('ArrowRight')
  await page.keyboard.press('ArrowRight')
  const view = await page.locator('input[name=view]:checked').inputValue()
  await page.locator('#scale').focus()
  const before = await page.locator('#overlay').evaluate((canvas) => canvas.toDataURL())
  await page.keyboard.press('ArrowRight')
  const after = await page.locator('#overlay').evaluate((canvas) => canvas.toDataURL())
  const scale = await page.locator('#scale').getAttribute('aria-valuetext')
  await page.locator('#picture').focus()
  await page.keyboard.press('ArrowRight')
  const readout = await page.locator('#readout').innerText()
  await page.keyboard.press('Shift+ArrowDown')
  const moved = await page.locator('#readout').innerText()
  const live = await page.locator('#readout').getAttribute('aria-live')
  await page.locator('input[value=classes]').check()
  return { order, view, scale, isRepainted: before !== after, readout, moved, live }
}

/** How many pixels are painted with all classes, without the first, as confidence, with none. */
async function legend(page) {
  const painted = () =>
    page.locator('#overlay').evaluate((canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
      return data.filter((value, at) => at % 4 === 3 && value > 0).length
    })
  await page.mouse.move(2, 2)
  const counts = [await painted()]
  await page.locator('#present input').first().uncheck()
  await page.mouse.move(2, 2)
  counts.push(await painted())
  await page.locator('input[value=confidence]').check()
  counts.push(await painted())
  await page.locator('input[value=classes]').check()
  await page.locator('#none').click()
  counts.push(await painted())
  await page.locator('#all').click()
  return counts
}

/** On, off and on again before the browser has allowed it, over two images; through another backend; where it fails. */
async function camera(page) {
  await page.evaluate(() => {
    const post = Worker.prototype.postMessage
    globalThis.running = globalThis.mostRunning = 0
    Worker.prototype.postMessage = function (message, transfer) {
      if (message.kind === 'run') {
        mostRunning = Math.max(mostRunning, ++running)
        const take = this.onmessage
        this.onmessage = (event) => {
          if (event.data.id === message.id) running--
          take(event)
        }
      }
      post.call(this, message, transfer)
    }
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices)
    globalThis.streams = []
    navigator.mediaDevices.getUserMedia = async (wanted) => {
      await new Promise((resolve) => setTimeout(resolve, 200))
      streams.push(await ask(wanted))
      return streams.at(-1)
    }
  })
  const live = () => page.evaluate(() => streams.map((stream) => stream.active))
  const isOn = () => page.getByText('640 × 480').waitFor({ timeout: 60 * SECONDS })
  const isIdle = () => page.locator('#busy').waitFor({ state: 'hidden', timeout: 60 * SECONDS })
  const found = {}
  await page.evaluate(() => {
    const canvas = Object.assign(document.createElement('canvas'), { width: 600, height: 400 })
    canvas.getContext('2d').fillRect(0, 0, 600, 400)
    canvas.toBlob((blob) => {
      const clipboardData = new DataTransfer()
      clipboardData.items.add(new File([blob], 'pasted.png', { type: 'image/png' }))
      const paste = () => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))
      const click = () => document.getElementById('camera').click()
      ;[paste, paste, click, click, click].forEach((act, at) => setTimeout(act, 5 * at))
    })
  })
  await isOn()
  await isIdle()
  found.live = await live()
  found.mostRunning = await page.evaluate(() => mostRunning)
  await page.locator('#backend').evaluate((select) => {
    select.value = 'wasm'
    select.dispatchEvent(new Event('change'))
  })
  await isIdle()
  await page.getByText('The camera is on.').waitFor()
  await page.locator('#camera').click()
  await page.getByText('The camera is off.').waitFor()
  found.after = await live()

  await page.evaluate(() => {
    HTMLMediaElement.prototype.play = async () => {
      throw new DOMException('no', 'NotSupportedError')
    }
  })
  await page.locator('#camera').click()
  await page.locator('#error').waitFor()
  found.afterError = await live()
  await page.evaluate(() => {
    navigator.mediaDevices.getUserMedia = async () => {
      throw new DOMException('no', 'NotAllowedError')
    }
  })
  await page.locator('#camera').click()
  await page.locator('#error').filter({ hasText: 'Allow it' }).waitFor()
  return found
}

async function wrongFile(page) {
  const path = join(output, 'notes.txt')
  writeFileSync(path, 'not an image')
  await page.locator('#file').setInputFiles(path)
  const error = page.locator('#error').filter({ hasText: 'notes.txt' })
  await error.waitFor()
  return error.innerText()
}

/** What the page gets where another program's files have the names that the build's have, and other names. */
async function others(page) {
  const names = ['icon.svg', 'other.wasm']
  const own = readFileSync(join(folder, 'icon.svg'))
  const found = []
  for (const text of ['one', 'two']) {
    for (const name of names) writeFileSync(join(folder, name), text)
    const get = (names) => Promise.all(names.map((name) => fetch(name, { cache: 'reload' }).then((got) => got.text())))
    found.push(await page.evaluate(get, names))
  }
  writeFileSync(join(folder, 'icon.svg'), own)
  rmSync(join(folder, 'other.wasm'))
  return found
}

/** The page once more, with no server there. */
async function offline(page, url) {
  await new Promise((resolve) => {
    servers[0].once('exit', resolve)
    servers[0].kill()
  })
  const gone = await fetch(url).then(() => false, () => true)
  await page.reload()
  await page.getByText('Ready.').waitFor({ timeout: 60 * SECONDS })
  const icon = await page.evaluate(async () => (await fetch('icon.svg')).text())
  const name = basename(images[0])
  await page.locator('#file').setInputFiles(images[0])
  await page.getByText(`${name}: `).waitFor({ timeout: 60 * SECONDS })
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator('#download').click()])
  await download.saveAs(join(output, `offline_${name}`))
  return gone && icon === readFileSync(join(folder, 'icon.svg'), 'utf8')
}

async function narrow(page) {
  await page.emulateMedia({ colorScheme: 'dark' })
  await page.setViewportSize({ width: 390, height: 844 })
  return page.evaluate(() => document.documentElement.scrollWidth)
}

/** What the page says where its server has not what it should have. */
async function broken(url, spoil) {
  const context = await browser.newContext({ serviceWorkers: 'block' })
  const page = await context.newPage()
  await spoil(page)
  await page.goto(url)
  await page.locator('#error').waitFor({ timeout: 60 * SECONDS })
  return page.locator('#error').innerText()
}
