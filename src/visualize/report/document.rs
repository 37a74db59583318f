//! A page in two forms: HTML that stands alone, and Markdown with its plots beside it.
//!
//! In: sections of paragraphs, tables, plots and code. Out: the text of a file. Whatever a block says is text: nothing in it
//! is taken for markup.

/// A page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// Its name.
    pub title: String,
    /// From the top.
    pub sections: Vec<Section>,
}

/// A part of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// From the top.
    pub blocks: Vec<Block>,
}

/// Something on a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Sentences.
    Paragraph(String),
    /// Rows of cells under a head.
    Table {
        /// One for each column.
        head: Vec<String>,
        /// From the top.
        rows: Vec<Row>,
    },
    /// An SVG, and the name of the file that Markdown finds it in.
    Plot {
        /// File name.
        name: String,
        /// What it shows.
        title: String,
        /// Its text.
        svg: String,
    },
    /// Lines as they are.
    Code(String),
}

/// A row of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// One for each column.
    pub cells: Vec<String>,
    /// Whether it is what the page is about, among rows to compare with.
    pub ours: bool,
}

impl Document {
    /// One file without links to others.
    pub fn html(&self) -> String {
        let mut body = format!("<h1>{}</h1>\n", escaped(&self.title));
        for section in &self.sections {
            body.push_str(&format!("<section>\n<h2>{}</h2>\n", escaped(&section.title)));
            for block in &section.blocks {
                body.push_str(&html(block));
            }
            body.push_str("</section>\n");
        }
        let title = escaped(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
        )
    }

    /// Markdown that shows each plot from the file of its name.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n", self.title);
        for section in &self.sections {
            text.push_str(&format!("\n## {}\n", section.title));
            for block in &section.blocks {
                text.push('\n');
                text.push_str(&markdown(block));
            }
        }
        text
    }

    /// File names and texts of the plots.
    pub fn plots(&self) -> impl Iterator<Item = (&str, &str)> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        blocks.filter_map(|block| match block {
            Block::Plot { name, svg, .. } => Some((name.as_str(), svg.as_str())),
            _ => None,
        })
    }
}

fn html(block: &Block) -> String {
    match block {
        Block::Paragraph(text) => format!("<p>{}</p>\n", escaped(text)),
        Block::Code(text) => format!("<pre>{}</pre>\n", escaped(text)),
        Block::Plot { title, svg, .. } => {
            format!("<figure role=\"img\" aria-label=\"{}\">{svg}</figure>\n", escaped(title))
        }
        Block::Table { head, rows } => {
            let numeric: Vec<bool> = (0..head.len()).map(|column| is_numeric(rows, column)).collect();
            let row = |cells: &[String], tag: &str| {
                let cells = cells.iter().enumerate().map(|(column, cell)| {
                    let class = if numeric.get(column) == Some(&true) { " class=\"number\"" } else { "" };
                    format!("<{tag}{class}>{}</{tag}>", escaped(cell))
                });
                cells.collect::<String>()
            };
            let mut text =
                format!("<div class=\"scroll\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n", row(head, "th"));
            for Row { cells, ours } in rows {
                let class = if *ours { " class=\"ours\"" } else { "" };
                text.push_str(&format!("<tr{class}>{}</tr>\n", row(cells, "td")));
            }
            text.push_str("</tbody></table></div>\n");
            text
        }
    }
}

/// Whether every cell of a column that says something says a number.
fn is_numeric(rows: &[Row], column: usize) -> bool {
    let mut cells = rows.iter().filter_map(|row| row.cells.get(column)).filter(|cell| !cell.is_empty()).peekable();
    cells.peek().is_some() && cells.all(|cell| cell.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit()))
}

fn markdown(block: &Block) -> String {
    match block {
        Block::Paragraph(text) => format!("{text}\n"),
        Block::Code(text) => format!("```\n{}\n```\n", text.trim_end().replace("```", "` ` `")),
        Block::Plot { name, title, .. } => format!("![{title}]({name})\n"),
        Block::Table { head, rows } => {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
            let mut text = line(head) + "|" + &"---|".repeat(head.len()) + "\n";
            for Row { cells, ours } in rows {
                let bold = |cell: &String| if cell.is_empty() { cell.clone() } else { format!("**{cell}**") };
                let cells = if *ours { cells.iter().map(bold).collect() } else { cells.clone() };
                text.push_str(&line(&cells));
            }
            text
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
body { margin: 0; background: #fff; color: #222; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
p { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .8rem 0; }
th, td { padding: .28rem .7rem; text-align: left; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; font-weight: 600; }
tbody tr:nth-child(even) { background: #f6f7f9; }
tr.ours td { background: #e8f1fb; font-weight: 600; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
pre { background: #f6f7f9; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
";

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Document {
        let rows = vec![
            Row { cells: vec!["others".into(), "1.0".into()], ours: false },
            Row { cells: vec!["<this> & run".into(), "2.0".into()], ours: true },
        ];
        let blocks = vec![
            Block::Paragraph("k < 100 & more".into()),
            Block::Table { head: vec!["method".into(), "mAP".into()], rows },
            Block::Plot { name: "loss.svg".into(), title: "loss".into(), svg: "<svg></svg>".into() },
            Block::Code("lr = \"0.1\"".into()),
        ];
        Document { title: "Run".into(), sections: vec![Section { title: "Tables".into(), blocks }] }
    }

    #[test]
    fn what_is_said_is_no_markup() {
        let html = page().html();
        assert!(html.contains("<p>k &lt; 100 &amp; more</p>") && html.contains("<td>&lt;this&gt; &amp; run</td>"));
        assert!(html.contains("<th class=\"number\">mAP</th>") && html.contains("<td class=\"number\">2.0</td>"));
        assert!(html.contains("<tr class=\"ours\">") && html.contains("<svg></svg>"));
        assert!(!html.contains("http"), "it stands alone");
    }

    #[test]
    fn markdown_has_tables_and_shows_plots_from_files() {
        let document = page();
        let text = document.markdown();
        assert!(text.contains("| method | mAP |\n|---|---|\n| others | 1.0 |\n| **<this> & run** | **2.0** |\n"));
        assert!(text.contains("![loss](loss.svg)") && text.contains("```\nlr = \"0.1\"\n```"));
        assert_eq!(document.plots().collect::<Vec<_>>(), [("loss.svg", "<svg></svg>")]);
    }
}
