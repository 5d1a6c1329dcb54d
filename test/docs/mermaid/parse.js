// Reads diagrams, as a JSON list of texts, from standard input, and writes a
// list of what is wrong with each, or null. No browser: the parser only wants
// somebody to sanitize labels with.
import { JSDOM } from 'jsdom';

const { window } = new JSDOM('');
globalThis.window = window;
globalThis.document = window.document;
const { default: mermaid } = await import('mermaid');

let input = '';
for await (const chunk of process.stdin) input += chunk;

const results = [];
for (const diagram of JSON.parse(input)) {
  results.push(await mermaid.parse(diagram).then(() => null, (error) => String(error)));
}
console.log(JSON.stringify(results));
