"""The page that :func:`lvis_tde.evaluation.report.write_report` fills in."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$TITLE</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f7fa; margin: 0; }
  main { max-width: 1320px; margin: auto; padding: 24px; }
  h1 { font-size: 24px; margin: 0 0 16px; }
  h2 { font-size: 18px; margin: 0 0 10px; }
  h3 { font-size: 15px; margin: 6px 0; }
  section { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 18px 20px;
  margin-bottom: 18px; } img { display: block; max-width: 100%; margin: 0 auto 12px; }
  svg { display: block; width: 100%; max-width: 800px; margin: auto; font-size: 12px; }
  svg .grid { stroke: #e4e7eb; }
  svg .mid { text-anchor: middle; }
  svg .end { text-anchor: end; }
  svg .title { font-weight: 600; font-size: 13px; }
  svg circle { opacity: .55; }
  svg circle:hover { opacity: 1; stroke: #1f2933; stroke-width: 1.5; }
  svg polyline { fill: none; stroke: #1f2933; stroke-width: 2; pointer-events: none; }
  .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 28px;
  } .wide { overflow-x: auto; }
  .tall { max-height: 560px; overflow-y: auto; }
  .note { color: #52606d; margin: 0 0 8px; }
  table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric:
  tabular-nums; } th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid #e4e7eb;
  white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  .change { font-weight: 600; }
  thead th { position: sticky; top: 0; background: #fff; cursor: pointer; }
  i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin: 0 5px 0 3px; }
  #tip { position: fixed; display: none; background: #1f2933; color: #fff; padding: 4px 9px;
  border-radius: 4px; font-size: 13px; pointer-events: none; } input { font: inherit; padding: 3px
  8px; }
</style>
<main><h1>$TITLE</h1>$BODY</main>
<div id="tip"></div>
<script>
  const tip = document.getElementById("tip");
  document.addEventListener("mousemove", (event) => {
    const text = event.target.dataset?.tip;
    tip.style.display = text ? "block" : "none";
    if (!text) return;
    tip.textContent = text;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 14 + "px";
  });
  const body = document.querySelector("#classes tbody");
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of body.rows)
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
  document.querySelectorAll("#classes th").forEach((head, column) => {
    let sign = column > 1 ? -1 : 1;
    head.addEventListener("click", () => {
      const key = (row) => row.cells[column].textContent;
      const number = (text) => (text === "–" ? -Infinity : parseFloat(text));
      const compare = column > 1
        ? (a, b) => number(key(a)) - number(key(b))
        : (a, b) => key(a).localeCompare(key(b));
      body.append(...[...body.rows].sort((a, b) => sign * (compare(a, b) || 0)));
      sign = -sign;
    });
  });
</script>
</html>
"""
