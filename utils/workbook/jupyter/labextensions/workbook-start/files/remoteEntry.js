// The workbook in JupyterLab: a start page, a panel with the open chapter's exercises, and the ways between them.
// A prebuilt extension written by hand: no bundler, the libraries are JupyterLab's own, from its shared scope.
// Its files do not lie in a folder `static`: what does, browsers keep for a year, and an update would not be seen.
(() => {
  const NAME = 'workbook-start';
  const EVERY = 2000; // milliseconds between two looks at the learner's progress
  const SEEN = 12; // cells that fill a window
  const UNDECIDED = 30000; // milliseconds: a notebook that was opened has a kernel starting by then, or is not to have one
  const SIGNS = { solved: '✓', taken: '✓', tried: '◐', open: '○' };
  const ICON =
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path class="jp-icon3" fill="#616161" ' +
    'd="M4 5h2v2H4zm4 0h12v2H8zM4 11h2v2H4zm4 0h12v2H8zM4 17h2v2H4zm4 0h12v2H8z"/></svg>';
  const HOUSE =
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path class="jp-icon3" fill="#616161" ' +
    'd="M12 3 2 12h3v8h6v-5h2v5h6v-8h3z"/></svg>';
  let scope;
  const lib = async name => (await Object.values(scope[name])[0].get())();

  const element = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
  const targetOf = cell => {
    const target = cell.type === 'code' && cell.getMetadata('exercise');
    return typeof target === 'string' ? target : null;
  };

  async function plugin() {
    const [{ ILabShell, ILayoutRestorer }, apputils, { IRenderMimeRegistry, MimeModel }, notebook, services, coreutils,
      { LabIcon }, { Widget }] = await Promise.all(
      ['application', 'apputils', 'rendermime', 'notebook', 'services', 'coreutils', 'ui-components']
        .map(name => lib(`@jupyterlab/${name}`)).concat(lib('@lumino/widgets')));
    const { ICommandPalette, MainAreaWidget, Notification, ToolbarButton, WidgetTracker } = apputils;
    const { INotebookTracker } = notebook;
    const { PageConfig, URLExt } = coreutils;
    const icon = new LabIcon({ name: 'workbook:exercises', svgstr: ICON });
    const house = new LabIcon({ name: 'workbook:start', svgstr: HOUSE });

    const settings = services.ServerConnection.makeSettings();
    const ask = path => services.ServerConnection.makeRequest(
      URLExt.join(settings.baseUrl, 'workbook', path), { cache: 'no-store' }, settings);

    // What is shown changes only where it differs, and the keyboard's place in it stays.
    function replace(node, fill) {
      const focused = node.contains(document.activeElement) && document.activeElement.id;
      fill();
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    }

    class Start extends Widget {
      constructor() {
        super();
        this.addClass('workbook');
        this.addClass('workbook-start');
      }
      show_(state) {
        if (state.page === this.page) return;
        this.page = state.page;
        replace(this.node, () => (this.node.innerHTML = state.page));
      }
    }

    class Panel extends Widget {
      constructor(tracker) {
        super();
        this.tracker = tracker;
        this.id = 'workbook-exercises';
        this.title.icon = icon;
        this.title.caption = 'Exercises of the open chapter';
        this.addClass('workbook');
        this.addClass('workbook-exercises');
      }
      show_(state) {
        const open = this.tracker.currentWidget;
        const cells = open?.context.isReady ? [...open.content.model.cells] : [];
        const chapter = state.chapters.find(c => cells.some(cell => c.exercises.some(e => e.target === targetOf(cell))))
          ?? state.chapters.find(c => c.file === open?.context.path);
        const key = JSON.stringify([chapter ?? state.chapters, open?.context.path, cells.map(c => [c.id, targetOf(c), headings(c)])]);
        if (key === this.key) return;
        this.key = key;
        replace(this.node, () => this.node.replaceChildren(...this.rows(chapter, cells, open, state)));
      }
      *rows(chapter, cells, open, state) {
        yield element('a', { href: '#', id: 'wb-to-start', className: 'to-start', textContent: 'Start page' });
        if (!open || !cells.length) {
          yield element('h2', { textContent: 'Chapters' });
          yield element('ul', {}, ...state.chapters.map(c => {
            const solved = c.exercises.filter(e => e.state in { solved: 1, taken: 1 }).length;
            const link = element('a', { href: '#', id: `wb-panel-${c.number}` },
              `${c.number} · ${c.title}`, element('small', { textContent: ` ${solved} of ${c.exercises.length}` }));
            link.dataset.open = c.file;
            return element('li', {}, link);
          }));
          return;
        }
        yield element('h2', { textContent: chapter ? `${chapter.number} · ${chapter.title}` : open.context.path });
        yield element('p', { textContent: '✓ solved · ◐ tried · ○ open · italic: optional' });
        let list = element('ul');
        const seen = new Set();
        for (const [i, cell] of cells.entries()) {
          const sitting = /^sitting-\d+$/.test(cell.id) && cell.sharedModel.getSource().match(/Sitting .*minutes/);
          if (sitting) {
            if (list.children.length) yield list;
            list = element('ul');
            yield element('p', { className: 'sitting', textContent: sitting[0].replaceAll('*', '') });
          }
          for (const [level, text] of headings(cell)) {
            if (level !== 2) continue;
            if (list.children.length) yield list;
            list = element('ul');
            yield element('h3', {}, this.link(open, i, text, `wb-section-${cell.id}`));
          }
          const exercise = chapter?.exercises.find(e => e.target === targetOf(cell));
          if (!exercise || seen.has(exercise)) continue;
          seen.add(exercise);
          list.append(this.exercise(exercise, this.link(open, exercise.name, exercise.title || exercise.name,
            `wb-exercise-${exercise.name}`)));
        }
        if (list.children.length) yield list;
        const gone = (chapter?.exercises ?? []).filter(e => !seen.has(e));
        if (gone.length) {
          yield element('h3', { textContent: 'Not in this copy' });
          yield element('p', { textContent: 'make update brings them back.' });
          yield element('ul', {}, ...gone.map(e => this.exercise(e, element('span', { textContent: e.title || e.name }))));
        }
      }
      link(open, at, text, id) {
        const link = element('a', { href: '#', textContent: text, id });
        link.dataset.open = open.context.path;
        link.dataset.at = at;
        return link;
      }
      exercise(e, link) {
        link.title = `${e.name}: ${e.state}, ${e.core ? 'core' : 'optional'}, ${e.minutes} minutes`;
        const sign = element('span', { className: `sign ${e.state}`, textContent: SIGNS[e.state] ?? SIGNS.open });
        sign.setAttribute('role', 'img');
        sign.setAttribute('aria-label', e.state);
        return element('li', { className: e.core ? 'core' : 'optional' }, sign, ' ', link);
      }
    }

    function headings(cell) {
      if (cell.type !== 'markdown') return [];
      return [...cell.sharedModel.getSource().matchAll(/^(#{1,4}) (.+)$/gm)].map(m => [m[1].length, m[2]]);
    }

    function activate(app, shell, tracker, rendermime, palette, restorer) {
      const { commands, docRegistry, serviceManager } = app;
      document.head.append(element('link', {
        rel: 'stylesheet', href: URLExt.join(PageConfig.getOption('fullLabextensionsUrl'), NAME, 'files/style.css')
      }));
      const content = new Start();
      const panel = new Panel(tracker);
      let tab, state, looking;

      async function look() {
        if (looking || document.hidden || !(content.isVisible || panel.isVisible)) return;
        looking = true;
        try {
          const answer = await ask('start');
          if (answer.ok) state = await answer.json();
        } catch { /* the server has stopped: JupyterLab says so itself */ }
        looking = false;
        if (!state) return;
        content.show_(state);
        panel.show_(state);
      }
      setInterval(look, EVERY);
      for (const widget of [content, panel]) widget.onAfterShow = look;
      document.addEventListener('visibilitychange', look);
      tracker.currentChanged.connect((_, open) => {
        look();
        open?.context.ready.then(look);
      });

      // ---------------------------------------------------------------- ways to an exercise

      notebook.NotebookActions.executed.connect(() => setTimeout(look, 100));

      // While a file is being read, one empty cell stands for it: Run All is meant for what comes.
      commands.commandExecuted.connect((_, { id, args }) => {
        const open = tracker.currentWidget;
        if (id === 'notebook:run-all-cells' && open && !open.context.isReady) {
          open.context.ready.then(() => tracker.currentWidget === open && commands.execute(id, args));
        }
      });

      // JupyterLab puts a chapter's cells on the page one after the other while the browser is idle, half a minute for a
      // long one: those that will be seen come first, and keep their place until the learner moves, or all are there.
      let held = new AbortController();
      async function reveal({ content }, index) {
        held.abort();
        held = new AbortController();
        const { signal } = held, leave = () => held.signal === signal && held.abort();
        for (const kind of ['wheel', 'pointerdown', 'keydown']) addEventListener(kind, leave, { capture: true, passive: true, signal });
        content.deselectAll();
        content.activeCellIndex = index;
        const above = content.widgets.slice(0, index), target = content.widgets[index];
        for (let i = index; i < Math.min(index + SEEN, content.widgets.length); i++) {
          const cell = content.widgets[i];
          if (cell.isAttached) continue;
          cell.dataset.windowedListIndex = `${i}`;
          content.layout.insertWidget(i, cell);
        }
        const scroll = () => Promise.race([content.scrollToItem(index, 'start', 0).catch(() => {}), pause(1000)]); // no margin
        await scroll();
        hold();
        async function hold() {
          for (let i = 0; i < 4 || above.some(cell => !cell.isAttached && !cell.isDisposed); i++) {
            await pause(100);
            if (signal.aborted || target.isDisposed || !content.isVisible) break;
            const aside = target.node.getBoundingClientRect().top - content.outerNode.getBoundingClientRect().top;
            if (Math.abs(aside) > 40) await scroll();
          }
          leave();
        }
      }

      let offer = ''; // the last notice that nothing has run
      async function hasRun(context) {
        await context.ready;
        const asked = context.session?.kernel?.requestExecute({ code: '', silent: true, store_history: false });
        return !asked || (await asked.done).content.execution_count > 0;
      }

      // `at`: a cell's index, an exercise's name, or a heading.
      async function go(path, at) {
        const widget = await commands.execute('docmanager:open', { path }).catch(() => null);
        if (!widget?.content) {
          Notification.warning(`${path} is not in your folder: make start brings a fresh one.`, { autoClose: 15000 });
          return;
        }
        await widget.context.ready;
        await widget.revealed;
        if (at === undefined || at === '') return;
        const cells = [...widget.content.model.cells];
        const found = [`task-${at}`, `about-${at}`, at].map(id => cells.findIndex(c => c.id === id)).find(i => i >= 0)
          ?? cells.findIndex(c => targetOf(c)?.endsWith(`.${at}`) || headings(c).some(([, text]) => text === at));
        const index = /^\d+$/.test(at) ? Number(at) : found;
        if (!(index >= 0 && index < cells.length)) {
          Notification.warning(`${at} is not in your copy: make update brings it back.`, { autoClose: 15000 });
          return;
        }
        await reveal(widget, index);
        Notification.dismiss(offer);
        if (found >= 0 && cells[index].id.startsWith('task-') && !(await hasRun(widget.sessionContext))) {
          offer = Notification.info('Nothing above has run in this session yet.', {
            autoClose: 20000,
            actions: [{ label: 'Run all above', displayType: 'accent', callback: () => {
              widget.content.activeCellIndex = index;
              commands.execute('notebook:run-all-above');
            } }]
          });
        }
      }

      async function show(name, title) {
        const id = `workbook-${name}`;
        if ([...shell.widgets('main')].some(w => w.id === id)) return shell.activateById(id);
        const answer = await ask(`document/${name}`);
        if (!answer.ok) return;
        const renderer = rendermime.createRenderer('text/markdown');
        await renderer.renderModel(new MimeModel({ data: { 'text/markdown': await answer.text() }, trusted: false }));
        renderer.addClass('workbook-document');
        const shown = new MainAreaWidget({ content: renderer });
        shown.id = id;
        Object.assign(shown.title, { label: title, closable: true, icon });
        shell.add(shown, 'main');
        shell.activateById(id);
      }

      document.addEventListener('click', event => {
        const link = event.target.closest?.('a');
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        const { open: path, at, document: name } = link.dataset;
        const inside = link.closest('.workbook, .workbook-document, .jp-NotebookPanel');
        const href = decodeURI(link.getAttribute('href') ?? '');
        const chapter = state?.chapters.find(c => href.split('#')[0].split('?')[0].endsWith(c.file));
        if (!inside) return;
        if (link.id === 'wb-to-start' || link.title === 'The start page') open();
        else if (name) show(name, link.textContent);
        else if (path) go(path, at);
        else if (href.startsWith('#cell-id=')) go(tracker.currentWidget.context.path, href.slice('#cell-id='.length));
        else if (chapter && link.closest('.workbook-document')) go(chapter.file, link.parentNode.querySelector('a + em')?.textContent);
        else return;
        event.preventDefault();
        event.stopImmediatePropagation();
      }, true);

      // ---------------------------------------------------------------- tab, panel, ways back

      const tabs = new WidgetTracker({ namespace: NAME });
      function open({ activate = true } = {}) {
        if (!tab || tab.isDisposed) {
          tab = new MainAreaWidget({ content });
          tab.id = NAME;
          Object.assign(tab.title, { label: 'Start', caption: 'The workbook: chapters and where you are', closable: true, icon: house });
          tab.disposed.connect(() => (tab = undefined));
          tabs.add(tab);
        }
        if (!tab.isAttached) shell.add(tab, 'main', { mode: 'tab-before', activate });
        if (activate) shell.activateById(tab.id);
      }
      commands.addCommand('workbook:start', {
        label: 'Workbook: start page', icon: house, execute: args => open({ activate: !args.restored })
      });
      palette?.addItem({ command: 'workbook:start', category: 'Workbook' });
      docRegistry.addWidgetExtension('Notebook', {
        createNew: widget => {
          const button = new ToolbarButton({ icon: house, tooltip: 'The start page', label: 'Start', onClick: () => open() });
          widget.toolbar.insertItem(0, 'workbook-start', button);
          return button;
        }
      });
      shell.add(panel, 'left', { rank: 0 });
      restorer?.add(panel, panel.id);
      const once = `${NAME}:${PageConfig.getOption('baseUrl')}:${PageConfig.getToken()}`;
      const again = sessionStorage.getItem(once);
      sessionStorage.setItem(once, 'seen');
      const asked = /\/(tree|doc)\//.test(location.pathname);
      // In the layout from the start, so that JupyterLab finds something there and opens no Launcher.
      restorer?.restore(tabs, { command: 'workbook:start', args: () => ({ restored: true }), name: () => 'start' });
      open({ activate: !again && !asked });
      app.restored.then(() => {
        if (!again) shell.activateById(panel.id);
        if (!tab?.isAttached || (!again && !asked)) open({ activate: !asked && (!again || !tracker.size) });
        look();
      });
    }

    // In place of JupyterLab's own executor. That one, asked while a notebook's kernel is being started, starts a second
    // (Run All: for its first cell), and all other cells run into nothing. Here they wait for one kernel, in their order.
    const waiting = new Map();
    const hasKernel = session => session.session?.kernel && !session.isTerminating;
    async function runCell(options) {
      const { cell, sessionContext: session } = options;
      if (cell.model.type === 'code' && session && (waiting.has(session) || !hasKernel(session))) {
        if (!waiting.has(session)) waiting.set(session, kernelOf(session).finally(() => waiting.delete(session)));
        cell.setPrompt('*');
        await waiting.get(session);
        if (cell.isDisposed) return false;
      }
      return notebook.runCell(options);
    }

    async function kernelOf(session) {
      let opened = false;
      session.ready.then(() => (opened = true));
      for (let waited = 0; !session.isDisposed && !hasKernel(session); waited += 100) {
        await pause(100);
        // Nobody starts one: it was shut down, or a choice among kernels was declined.
        const idle = session.hasNoKernel && !session.isTerminating && (opened || waited > UNDECIDED);
        if (idle && (await session.startKernel())) return;
      }
    }

    return [{
      id: `${NAME}:plugin`,
      autoStart: true,
      requires: [ILabShell, INotebookTracker, IRenderMimeRegistry],
      optional: [ICommandPalette, ILayoutRestorer],
      activate
    }, {
      id: `${NAME}:executor`,
      autoStart: true,
      provides: notebook.INotebookCellExecutor,
      activate: () => Object.freeze({ runCell })
    }];
  }

  (window._JUPYTERLAB ??= {})[NAME] = {
    init(shared) { scope = shared; },
    async get() {
      const made = await plugin();
      return () => ({ __esModule: true, default: made });
    }
  };
})();
