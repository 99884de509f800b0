// The official JavaScript client against `unified serve`: node client.mjs http://127.0.0.1:PORT/v1 PICTURE.png FOLDER_WITH_node_modules
import { createRequire } from 'node:module';
import { readFileSync, createReadStream } from 'node:fs';
import assert from 'node:assert';
const [base, path, modules] = process.argv.slice(2);
const OpenAI = createRequire(modules + '/x.js')('openai');
const client = new OpenAI({ baseURL: base, apiKey: 'none', maxRetries: 0 });
const url = 'data:image/png;base64,' + readFileSync(path).toString('base64');
const png = data => Buffer.from(data, 'base64').subarray(1, 4).toString() === 'PNG';

const seen = await client.chat.completions.create({ model: 'nano', seed: 0, messages: [{ role: 'user', content: [
  { type: 'image_url', image_url: { url } }, { type: 'text', text: 'what is in the picture?' }] }] });
assert.equal(seen.choices[0].message.content, 'a red circle');
const drawn = await client.chat.completions.create({ model: 'nano', seed: 0, messages: [{ role: 'user', content: 'draw a blue square' }] });
assert(png(drawn.choices[0].message.images[0].image_url.url.split(',')[1]));
let text = '';
for await (const chunk of await client.chat.completions.create({ model: 'nano', messages: [{ role: 'user', content: 'hello' }], stream: true }))
  text += chunk.choices[0]?.delta?.content ?? '';
assert(text.startsWith('hello'), text);
const images = await client.images.generate({ model: 'nano', prompt: 'a red circle', n: 2 });
assert(images.data.length === 2 && png(images.data[0].b64_json));
const edited = await client.images.edit({ model: 'nano', image: createReadStream(path), prompt: 'make it blue' });
assert(png(edited.data[0].b64_json));
const both = await client.embeddings.create({ model: 'nano', input: ['a red circle', url], encoding_format: 'float' });
assert(both.data.length === 2 && both.data[0].embedding.length > 8);
await assert.rejects(client.chat.completions.create({ model: 'gpt-4o', messages: [{ role: 'user', content: 'hello' }] }), e => e.status === 404);
console.log('ok');
