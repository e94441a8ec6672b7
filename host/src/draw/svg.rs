//! The graph as an SVG picture: who uses something stands above it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{GraphDescription, Kind, bitmap_text, export_text, node_text, short};
use crate::text::printable;

const CHAR_WIDTH: usize = 8;
const LINE_HEIGHT: usize = 18;
const PADDING: usize = 10;
const GAP: usize = 30;
/// Between two layers: room for the edges' labels.
const LAYER_GAP: usize = 70;

struct Shape {
    lines: Vec<String>,
    style: &'static str,
    layer: usize,
    x: usize,
    y: usize,
}

impl Shape {
    fn new(lines: Vec<String>, style: &'static str) -> Self {
        Self { lines, style, layer: 0, x: 0, y: 0 }
    }

    fn width(&self) -> usize {
        let longest = self.lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        longest * CHAR_WIDTH + 2 * PADDING
    }

    fn height(&self) -> usize {
        self.lines.len() * LINE_HEIGHT + 2 * PADDING
    }

    fn centre(&self) -> usize {
        self.x + self.width() / 2
    }
}

struct Line {
    from: usize,
    to: usize,
    label: String,
    style: &'static str,
}

/// Draws a graph as SVG: drives and exports at the top, each node below all who use it; bitmaps stand with what
/// they record.
pub fn svg(graph: &GraphDescription) -> String {
    let (mut shapes, lines) = parts(graph);
    layer(&mut shapes, &lines);
    let (width, height) = place(&mut shapes);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"13\">\n\
         <defs><marker id=\"end\" markerWidth=\"8\" markerHeight=\"8\" refX=\"8\" refY=\"4\" \
         orient=\"auto\"><path d=\"M0,0 L8,4 L0,8 z\"/></marker></defs>\n"
    );
    for line in &lines {
        draw_line(&shapes[line.from], &shapes[line.to], line, &mut svg);
    }
    for shape in &shapes {
        draw_shape(shape, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

fn parts(graph: &GraphDescription) -> (Vec<Shape>, Vec<Line>) {
    let (mut shapes, mut lines) = (Vec::new(), Vec::new());
    let mut places: BTreeMap<(u8, &str), usize> = BTreeMap::new();
    let key = |kind: Kind| kind as u8;
    let bitmaps = |kind: Kind, name: &str| -> Vec<String> {
        graph.bitmaps_of(kind, name).map(bitmap_text).collect()
    };
    for drive in &graph.drives {
        places.insert((key(Kind::Drive), &drive.id), shapes.len());
        let medium = if drive.root.is_some() { "" } else { ", no medium" };
        let mut text = vec![format!("drive {}{medium}", drive.id)];
        text.extend(bitmaps(Kind::Drive, &drive.id));
        shapes.push(Shape::new(text, "rx=\"14\" fill=\"#dcecff\""));
    }
    for export in &graph.exports {
        places.insert((key(Kind::Export), &export.id), shapes.len());
        shapes.push(Shape::new(vec![export_text(export)], "rx=\"14\" fill=\"#fff3d6\""));
    }
    for node in &graph.nodes {
        places.insert((key(Kind::Node), &node.name), shapes.len());
        let mut text = vec![node_text(node)];
        text.extend(bitmaps(Kind::Node, &node.name));
        let dashed = "rx=\"2\" fill=\"#f4f4f4\" stroke-dasharray=\"4\"";
        let style = if node.unnamed { dashed } else { "rx=\"2\" fill=\"#ffffff\"" };
        shapes.push(Shape::new(text, style));
    }
    let mut join = |from: (u8, &str), to: (u8, &str), label: String, style| {
        if let (Some(&from), Some(&to)) = (places.get(&from), places.get(&to)) {
            lines.push(Line { from, to, label, style });
        }
    };
    for export in graph.exports.iter().filter(|export| export.scope == Kind::Drive) {
        join((key(Kind::Export), &export.id), (key(Kind::Drive), &export.of), String::new(), "");
    }
    for edge in &graph.edges {
        let (uses, shares) = (short(&edge.uses), short(&edge.shares));
        let label = format!("{} ({}), uses {uses}, shares {shares}", edge.name, edge.role);
        let style = if edge.role.is_view() { "" } else { "stroke-dasharray=\"6\"" };
        let from = (key(edge.parent_kind), edge.parent.as_str());
        join(from, (key(Kind::Node), &edge.child), label, style);
    }
    (shapes, lines)
}

/// Puts each below all that lead to it. A description that comes from elsewhere may have a circle: the number of
/// rounds is bounded.
fn layer(shapes: &mut [Shape], lines: &[Line]) {
    for _ in 0..shapes.len() {
        let mut is_done = true;
        for line in lines {
            let least = shapes[line.from].layer + 1;
            if shapes[line.to].layer < least && least <= shapes.len() {
                shapes[line.to].layer = least;
                is_done = false;
            }
        }
        if is_done {
            return;
        }
    }
}

/// Lays the layers out, from the top and from the left; gives the size of the whole.
fn place(shapes: &mut [Shape]) -> (usize, usize) {
    let layers = shapes.iter().map(|shape| shape.layer + 1).max().unwrap_or(0);
    let (mut y, mut width) = (GAP, 0);
    for layer in 0..layers {
        let (mut x, mut tallest) = (GAP, 0);
        for shape in shapes.iter_mut().filter(|shape| shape.layer == layer) {
            (shape.x, shape.y) = (x, y);
            x += shape.width() + GAP;
            tallest = tallest.max(shape.height());
        }
        width = width.max(x);
        // A layer that only a circle has is empty.
        if tallest > 0 {
            y += tallest + LAYER_GAP;
        }
    }
    (width, y)
}

fn draw_line(from: &Shape, to: &Shape, line: &Line, svg: &mut String) {
    let (x1, y1) = (from.centre(), from.y + from.height());
    let (x2, y2) = (to.centre(), to.y);
    let _ = writeln!(
        svg,
        "<path d=\"M{x1},{y1} C{x1},{} {x2},{} {x2},{y2}\" fill=\"none\" stroke=\"black\" {} \
         marker-end=\"url(#end)\"/>",
        y1 + LAYER_GAP / 2,
        y2.saturating_sub(LAYER_GAP / 2),
        line.style
    );
    if !line.label.is_empty() {
        let (x, y) = ((x1 + x2) / 2 + 6, (y1 + y2) / 2);
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"11\">{}</text>",
            escaped(&line.label)
        );
    }
}

fn draw_shape(shape: &Shape, svg: &mut String) {
    let (x, y, width, height) = (shape.x, shape.y, shape.width(), shape.height());
    let style = shape.style;
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {style} stroke=\"black\"/>"
    );
    for (index, line) in shape.lines.iter().enumerate() {
        let (x, y) = (x + PADDING, y + PADDING + (index + 1) * LINE_HEIGHT - 4);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(line));
    }
}

fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
