// What pages can't do by themselves: the reader's zone, and plots. Every figure is in the page without it.
"use strict";

(() => {
  const body = document.body;
  const address = new URL(location.href);

  // The reader's own zone, once: from then on it stands in the address.
  if (body.hasAttribute("data-zone") && !address.searchParams.has("tz")) {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if (zone && zone !== "UTC" && zone !== "Etc/UTC") {
      address.searchParams.set("tz", zone);
      location.replace(address);
      return;
    }
  }

  // Empty fields of a filter would only make its address longer.
  for (const form of document.querySelectorAll("form[method=get]")) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) {
        if (field.name && !field.value) field.disabled = true;
      }
    });
  }

  // A menu closes by Escape, and by a click elsewhere.
  const menus = [...document.querySelectorAll("details.menu")];
  document.addEventListener("click", (event) => {
    for (const menu of menus) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus) {
      if (menu.open) {
        menu.open = false;
        menu.querySelector("summary").focus();
      }
    }
  });

  if (typeof uPlot === "undefined") return;

  const colour = (name) => getComputedStyle(body).getPropertyValue(name).trim();

  const symbols = { USD: "$", EUR: "€", GBP: "£", JPY: "¥", INR: "₹", CNY: "CN¥" };
  const isCount = (unit) => unit === "tokens" || unit === "requests";
  const withUnit = (text, unit) =>
    unit === "%" ? `${text} %` : isCount(unit) ? text : symbols[unit] ? symbols[unit] + text : `${unit} ${text}`;

  // The figures beside an axis, where three digits say enough; amounts that are not whole have their cents.
  const marked = (values, unit) => {
    const cents = !isCount(unit) && unit !== "%" && !values.every(Number.isInteger);
    const options = cents
      ? { minimumFractionDigits: 2, maximumFractionDigits: 9 }
      : { notation: "compact", maximumSignificantDigits: 3 };
    const format = new Intl.NumberFormat("en", options);
    return values.map((value) => withUnit(format.format(value), unit));
  };

  // A figure beside the pointer: the exact text, cut to what is read, and never a float.
  const figure = (text, unit) => {
    if (text === "") return "–";
    const value = Number(text);
    const options = isCount(unit)
      ? { maximumFractionDigits: 0 }
      : unit === "%"
        ? { maximumFractionDigits: 1 }
        : Math.abs(value) >= 1 || value === 0
          ? { minimumFractionDigits: 2, maximumFractionDigits: 2 }
          : { maximumSignificantDigits: 2 };
    return withUnit(new Intl.NumberFormat("en", options).format(text), unit);
  };

  const stacked = (series) => {
    const sums = [];
    let below = series[0].map(() => 0);
    for (const points of series) {
      below = points.map((value, place) => below[place] + value);
      sums.push(below);
    }
    return sums;
  };

  const tooltip = (data, box) => {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    const row = (name, text, shade) => {
      const line = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.style.background = shade || "transparent";
      const label = document.createElement("span");
      label.textContent = name;
      const value = document.createElement("span");
      value.textContent = text;
      line.append(swatch, label, value);
      return line;
    };
    return {
      hooks: {
        init: (plot) => plot.over.append(tip),
        setCursor: (plot) => {
          const place = plot.cursor.idx;
          if (place == null || plot.cursor.left < 0) {
            tip.hidden = true;
            return;
          }
          const title = document.createElement("strong");
          title.textContent = data.labels[place];
          const lines = data.series
            .filter((each) => Number(each.points[place]) !== 0 || data.series.length === 1)
            .map((each) => row(each.name, figure(each.points[place], data.unit), colour(`--s${each.colour}`)));
          tip.replaceChildren(title, ...lines);
          if (lines.length !== 1 && data.kind === "bars") {
            const total = row("Total", figure(data.totals[place], data.unit));
            total.className = "sum";
            tip.append(total);
          }
          tip.hidden = false;
          const left = plot.valToPos(place, "x");
          const right = left > plot.over.clientWidth / 2;
          tip.style.left = right ? "auto" : `${left + 14}px`;
          tip.style.right = right ? `${plot.over.clientWidth - left + 14}px` : "auto";
          tip.style.top = "4px";
        },
      },
    };
  };

  const draw = (box) => {
    const data = JSON.parse(box.dataset.chart);
    const numbers = data.series.map((each) => each.points.map((text) => (text === "" ? null : Number(text))));
    const bars = data.kind === "bars";
    const shown = bars ? stacked(numbers) : numbers;
    const places = data.labels.map((_, place) => place);
    // The tallest first, so that what is below it is drawn over it.
    const order = data.series.map((_, number) => number);
    if (bars) order.reverse();
    const font = `12px ${getComputedStyle(body).fontFamily}`;
    const axis = { stroke: colour("--muted"), font, grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    const series = order.map((number) => {
      const shade = colour(`--s${data.series[number].colour}`);
      return bars
        ? { label: data.series[number].name, fill: shade, stroke: shade, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.72, 46], radius: number === order[0] ? 0.12 : 0 }) }
        : { label: data.series[number].name, stroke: shade, width: 2, spanGaps: true, points: { show: false } };
    });
    const options = {
      width: box.clientWidth,
      height: box.clientHeight,
      padding: [10, 30, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: !bars }, drag: { x: false, y: false } },
      scales: {
        x: { time: false, range: [-0.6, places.length - 0.4] },
        y: { range: (_, low, high) => [0, data.unit === "%" ? Math.min(100, Math.max(high * 1.15, 10)) : high > 0 ? high * 1.06 : 1] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 34,
          gap: 9,
          splits: (plot) => {
            const room = Math.max(1, Math.floor(plot.bbox.width / devicePixelRatio / 84));
            const step = Math.max(1, Math.ceil(places.length / room));
            return places.filter((place) => place % step === 0);
          },
          values: (_, marks) => marks.map((place) => data.labels[place] ?? ""),
        },
        { ...axis, size: 58, space: 46, values: (_, marks) => marked(marks, data.unit) },
      ],
      series: [{}, ...series],
      plugins: [tooltip(data, box)],
    };
    return new uPlot(options, [places, ...order.map((number) => shown[number])], box);
  };

  for (const box of document.querySelectorAll("[data-chart]")) {
    let plot = draw(box);
    new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: box.clientHeight })).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      plot.destroy();
      plot = draw(box);
    });
    box.dataset.drawn = "";
  }
})();
