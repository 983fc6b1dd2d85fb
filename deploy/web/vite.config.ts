// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { defaultClientConditions, defineConfig, type Plugin } from 'vite'
import { HEADERS, ISOLATION, POLICY } from './headers.ts'

/** The policy in the page itself, for servers that send no headers. */
const policy: Plugin = {
  name: 'policy',
  apply: 'build',
  transformIndexHtml: () => [
    { tag: 'meta', attrs: { 'http-equiv': 'Content-Security-Policy', content: POLICY }, injectTo: 'head-prepend' },
  ],
}

/** The service worker, which knows the build's files and their hash, and the headers for servers. */
const offline: Plugin = {
  name: 'offline',
  apply: 'build',
  closeBundle() {
    const there = readdirSync('dist', { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).replaceAll('\\', '/').slice('dist/'.length))
      .filter((file) => !/^(model\/|sw\.js$|headers\.json$|_headers$)/.test(file))
      .sort()

    const source = readFileSync('sw.js', 'utf8')
    const hash = createHash('sha256').update(source).update(JSON.stringify(HEADERS))
    for (const file of there) hash.update(file).update(readFileSync(join('dist', file)))

    // A browser needs one of the .wasm files, which are large: that is kept when it is first asked for.
    const first = there.filter((file) => !file.endsWith('.wasm') && file !== 'index.html')
    const assets = there.filter((file) => file.startsWith('assets/')) // whose names hold their hash
    const build = { version: hash.digest('hex').slice(0, 16), files: ['./', ...first], assets, headers: HEADERS }
    writeFileSync('dist/sw.js', source.replace('/* BUILD */', `const BUILD = ${JSON.stringify(build)}`))

    writeFileSync('dist/headers.json', JSON.stringify(HEADERS, null, 2) + '\n')
    const lines = Object.entries(HEADERS).map(([name, value]) => `  ${name}: ${value}\n`)
    writeFileSync('dist/_headers', `/*\n${lines.join('')}`) // as Netlify and Cloudflare read them
  },
}

export default defineConfig({
  base: './', // It may be served from any folder.
  plugins: [policy, offline],
  // ONNX Runtime's loader stays a file of its own, which its threads start from.
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', ...defaultClientConditions] },
  optimizeDeps: { exclude: ['onnxruntime-web'] },
  worker: { format: 'es' },
  build: { target: 'es2022', modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
  server: { headers: ISOLATION }, // Vite's own scripts do not fit the policy.
  preview: { headers: HEADERS },
})
