// A model's text to markup that cannot do anything: HTML in it stays text, images become links, and whatever is left
// passes the sanitiser, which is also the only maker of markup that the page's policy accepts.

import DOMPurify from 'dompurify'
import { Marked, Renderer, type Token, type Tokens } from 'marked'

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => link(href, text || href),
    link({ href, tokens }: Tokens.Link) {
      return link(href, this.parser.parseInline(tokens), true)
    },
    // A message has a heading of its own two levels up.
    heading({ tokens, depth }: Tokens.Heading) {
      const level = Math.min(6, depth + 2)
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`
    },
    table(table: Tokens.Table) {
      return `<div tabindex="0">${Renderer.prototype.table.call(this, table)}</div>`
    },
    checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
    code: ({ text, lang }) => {
      const name = lang?.match(/^[\w+#.-]+/)?.[0]
      return `<pre tabindex="0"${name ? ` title="${escape(name)}"` : ''}><code>${escape(text)}\n</code></pre>`
    },
  },
})

const PLAIN = ['title', 'start', 'align', 'target', 'rel', 'tabindex']

const ALLOWED = {
  ALLOWED_TAGS:
    'a blockquote br code del div em h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul'.split(' '),
  ALLOWED_ATTR: ['href', ...PLAIN],
  ADD_URI_SAFE_ATTR: PLAIN,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true as const,
}

/** A text's paragraphs, lists, tables…: each in its own source, so that while more arrives only the last one changes. */
export function blocks(text: string): string[] {
  return marked.lexer(text).filter(({ type }: Token) => type !== 'space').map(({ raw }) => raw)
}

export function render(source: string): TrustedHTML | string {
  const html = marked.parse(source, { async: false })
  return DOMPurify.sanitize(html, ALLOWED)
}

function link(href: string, label: string, isHtml = false): string {
  const inside = isHtml ? label : escape(label)
  return /^(https?|mailto):/i.test(href)
    ? `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer nofollow">${inside}</a>`
    : inside
}

function escape(text: string): string {
  const names: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
  return text.replace(/[&<>"']/g, (character) => names[character]!)
}
