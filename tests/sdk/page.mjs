// Opens the status page in headless Chromium. Prints one JSON object: what the page shows, and what went wrong.
//
//   node page.mjs '{ "url": …, "modules": FOLDER, "browser": FILE, "shots": { FILE: { width, height, dark, part } }, "wait": MS }'
import { createRequire } from 'node:module';
import path from 'node:path';

const job = JSON.parse(process.argv[2]);
const { chromium } = createRequire(path.join(job.modules, 'x.js'))('playwright-core');
const browser = await chromium.launch({ executablePath: job.browser, args: ['--no-sandbox', '--no-proxy-server'] });
const told = { errors: [], requests: [], shots: {} };
const shows = (page) => page.evaluate(() => ({
  title: document.title,
  text: document.getElementById('main').innerText,
  state: document.getElementById('state').textContent,
  sums: document.getElementById('sums').textContent,
  accounts: Object.fromEntries([...document.querySelectorAll('#accounts tbody tr')].map((row) => [row.dataset.key, {
    says: row.querySelector('.says span').textContent,
    ...Object.fromEntries([...row.querySelectorAll('[data-field]')].map((cell) => [cell.dataset.field, cell.querySelector('span').textContent])),
  }])),
  charts: [...document.querySelectorAll('#charts svg')].map((svg) => svg.getAttribute('aria-label')),
  drawn: [...document.querySelectorAll('#charts svg')].map((svg) => Math.max(0, ...[...svg.querySelectorAll('path:not(.grid)')].map((path) => path.getAttribute('d').length))),
  events: [...document.querySelectorAll('#events tbody tr')].map((row) => row.cells[2].textContent),
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  cut: ['accounts-card', 'events-card'].map((id) => document.getElementById(id)).map((card) => card.scrollWidth - card.clientWidth),
  focus: document.activeElement?.tagName,
}));
try {
  for (const [name, { width, height, dark, act, part }] of Object.entries(job.shots)) {
    const page = await browser.newPage({ viewport: { width, height }, colorScheme: dark ? 'dark' : 'light' });
    page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) told.errors.push(message.text()); });
    page.on('pageerror', (error) => told.errors.push(String(error)));
    page.on('request', (request) => told.requests.push(request.url()));
    await page.goto(job.url);
    await page.waitForFunction(() => document.getElementById('about').textContent !== '');
    await page.waitForTimeout(job.wait ?? 500);
    if (act === 'keyboard') {
      told.keyboard = [];
      for (let n = 0; n < 4; n++) {
        await page.keyboard.press('Tab');
        told.keyboard.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName.toLowerCase()));
      }
      await page.keyboard.press('ArrowLeft');
      told.read = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
      await page.keyboard.press('Escape');
    }
    if (!name.startsWith('-')) await page.screenshot({ path: name, fullPage: !part });
    told.shots[name] = await shows(page);
    await page.close();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(told));
