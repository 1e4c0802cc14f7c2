import { readFileSync } from 'node:fs'
import { defineConfig, type Plugin } from 'vite'

// Names without hashes: the server asks browsers to check each time, and a rebuild of the same sources is the same files.
export default defineConfig({
  base: '/page/',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: '../src/perilune/http/assets',
    emptyOutDir: true,
    assetsDir: '',
    assetsInlineLimit: 0,
    modulePreload: false,
    target: 'es2022',
    reportCompressedSize: false,
    rolldownOptions: {
      output: { entryFileNames: 'page.js', assetFileNames: 'page.[ext]', codeSplitting: false },
    },
  },
  plugins: [licences(['preact', '@preact/signals', '@preact/signals-core', 'uplot', 'marked', 'dompurify'])],
  server: { proxy: Object.fromEntries(['/v1', '/live', '/doctor', '/health'].map((path) => [path, 'http://127.0.0.1:8000'])) },
})

/** The licences of what is inside the bundle go with it. */
function licences(names: string[]): Plugin {
  return {
    name: 'licences',
    generateBundle() {
      const texts = names.map((name) => {
        const folder = new URL(`node_modules/${name}/`, import.meta.url)
        const { version } = JSON.parse(readFileSync(new URL('package.json', folder), 'utf8'))
        return `${name} ${version}\n\n${readFileSync(new URL('LICENSE', folder), 'utf8').trim()}\n`
      })
      this.emitFile({ type: 'asset', fileName: 'licences.txt', source: texts.join(`\n${'-'.repeat(80)}\n\n`) })
    },
  }
}
