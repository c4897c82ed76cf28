//! Aligned tables on the terminal.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Prints rows under a header; the columns in `right` are numbers.
pub fn print(header: &[&str], rows: impl Iterator<Item = Vec<String>>, right: &[usize]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        println!("{}", line.trim_end());
    }
}
