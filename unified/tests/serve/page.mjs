// node page.mjs URL PICTURE.png FOLDER_WITH_node_modules CHROMIUM SCREENSHOTS
import { createRequire } from 'node:module';
import { readFileSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import assert from 'node:assert';
const [url, path, modules, executablePath, shots] = process.argv.slice(2);
const require = createRequire(modules + '/x.js');
const { chromium } = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const context = await chromium.launchPersistentContext(mkdtempSync(tmpdir() + '/page-'), { executablePath, args, headless: true, viewport: { width: 1000, height: 760 } });
const page = context.pages()[0] ?? await context.newPage();
page.on('pageerror', e => { console.error(e); process.exitCode = 1; });
await page.goto(url);
await page.waitForSelector('.empty button');
await page.screenshot({ path: shots + '/page-empty.png' });
const done = () => page.waitForFunction(() => document.getElementById('send').textContent === 'Send' && document.querySelectorAll('article.assistant').length > 0);
const fine = async where => {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const bad = violations.filter(v => ['serious', 'critical'].includes(v.impact));
  assert.equal(bad.length, 0, where + ': ' + JSON.stringify(bad.map(v => [v.id, v.nodes.map(n => n.html)])));
};
// an empty state's prompt draws
await page.click('.empty button');
await done();
assert.equal(await page.locator('article.assistant img').count(), 1);
// ask about the drawing, by the keyboard alone
await page.fill('#words', 'what is in the picture?');
await page.press('#words', 'Enter');
await page.waitForFunction(() => document.querySelectorAll('article.assistant').length === 2);
await done();
const said = await page.locator('article.assistant').nth(1).locator('p').first().textContent();
assert.match(said, /circle|square/);
await page.screenshot({ path: shots + '/page-talk.png' });
await fine('conversation');
// drag a picture in
const data = readFileSync(path).toString('base64');
await page.evaluate(async data => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const dt = new DataTransfer();
  dt.items.add(new File([bytes], 'photo.png', { type: 'image/png' }));
  document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: dt, bubbles: true, cancelable: true }));
}, data);
await page.waitForSelector('#shown img');
await page.fill('#words', 'what is in the picture?');
await page.click('#send');
await page.waitForFunction(() => document.querySelectorAll('article.assistant').length === 3);
await done();
assert.match(await page.locator('article.assistant').nth(2).locator('p').first().textContent(), /a red circle/);
// retry makes a second version, and both stay
await page.locator('article.assistant').nth(2).getByRole('button', { name: 'Retry this answer' }).click();
await page.waitForSelector('text=2 of 2');
// stop
await page.fill('#words', 'draw four red circles');
await page.click('#send');
await page.click('#send');
await page.waitForFunction(() => document.getElementById('send').textContent === 'Send');
// reload keeps the conversation and the settings
await page.click('#settings');
await page.fill('#temperature', '0.5');
await fine('settings');
await page.keyboard.press('Escape');
const before = await page.locator('article').count();
await page.reload();
await page.waitForSelector('article');
assert.equal(await page.locator('article').count(), before);
assert.equal(await page.inputValue('#temperature'), '0.5');
// pictures with their recipe
await page.click('#gallery');
await page.waitForSelector('#all img');
assert.match(await page.locator('#all figcaption').first().textContent(), /seed \d+/);
await fine('gallery');
await page.keyboard.press('Escape');
// edit the first message: a branch
await page.locator('article.user').first().getByRole('button', { name: 'Edit this message' }).click();
await page.locator('article.user textarea').fill('draw a green star');
await page.locator('article.user').getByRole('button', { name: 'Send', exact: true }).click();
await page.waitForFunction(() => document.querySelectorAll('article').length === 2);
await done();
await page.locator('article.user').getByRole('button', { name: 'The version before' }).click();
assert.equal(await page.locator('article').count(), before);
// a phone, and the dark
await page.setViewportSize({ width: 360, height: 740 });
await page.emulateMedia({ colorScheme: 'dark' });
await fine('phone, dark');
assert(await page.evaluate(() => document.documentElement.scrollWidth <= 360), 'wider than a phone');
await page.screenshot({ path: shots + '/page-phone.png' });
await context.close();
console.log('ok');
