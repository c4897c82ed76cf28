//! `[set]` and `[service]`: tables whose keys the user names, and whose lists may include each other.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::names::{Blocks, NamedService, Names, Service, Set, Wrong, dedupe, unknown_service};
use super::reader::{FromToml, Item, Reader, Table};
use super::source::{At, Mistakes, Place, Source};

/// Mistakes reported of one list file; a file of some other kind would otherwise bury all else.
pub(super) const MOST_OF_A_FILE: usize = 20;

/// Lists by name, before those they include are added.
struct Lists<T> {
    lists: Vec<T>,
    by_name: HashMap<String, usize>,
    /// What each includes, as written.
    includes: Vec<Vec<(At<String>, String)>>,
}

impl<T> Lists<T> {
    fn new() -> Lists<T> {
        Lists { lists: Vec::new(), by_name: HashMap::new(), includes: Vec::new() }
    }

    fn add(&mut self, name: String, list: T, includes: Vec<(At<String>, String)>) {
        self.by_name.insert(name, self.lists.len());
        self.lists.push(list);
        self.includes.push(includes);
    }
}

/// Reads `[set]`.
pub(super) fn read_sets(item: Item<'_>, names: &mut Names, reader: &mut Reader<'_>) {
    let Some(table) = reader.table(item) else { return };
    let mut all = Lists::new();
    for (name, span, item) in table.rest() {
        let place = reader.place_of(&span);
        good_name(&name, &place, &item.path, "set", reader.mistakes);
        let (mut blocks, mut includes) = (Blocks::default(), Vec::new());
        match item.is_table() {
            true => read_file_set(item, &mut blocks, reader),
            false => {
                for (text, path) in strings(item, reader) {
                    if let Some(other) = text.strip_prefix('@') {
                        includes.push((At { value: other.to_owned(), place: text.place.clone() }, path));
                    } else if let Err(wrong) = blocks.add(&text) {
                        wrong.note(&text.place, &path, reader.mistakes);
                    }
                }
            }
        }
        all.add(name.clone(), (name, place, blocks), includes);
    }
    let known: Vec<&str> = all.lists.iter().map(|(name, ..)| name.as_str()).collect();
    let includes = resolve(&all.includes, &all.by_name, |text, path| {
        reader.mistakes.unknown(&text.place, path, "set", text, known.iter().copied());
    });
    let mut sets: Vec<Set> = Vec::new();
    let mut blocks = Vec::new();
    for (name, place, own) in all.lists {
        sets.push(Set { name, v4: Vec::new(), v6: Vec::new(), place });
        blocks.push(own);
    }
    for i in in_order(includes.clone(), |from, place| {
        let message = format!("the set {:?} includes itself", sets[from].name);
        reader.mistakes.at(place, &format!("set.{}", sets[from].name), message);
    }) {
        let mut own = std::mem::take(&mut blocks[i]);
        for (from, _) in &includes[i] {
            own.v4.extend_from_slice(&sets[*from].v4);
            own.v6.extend_from_slice(&sets[*from].v6);
        }
        own.aggregate();
        (sets[i].v4, sets[i].v6) = (own.v4, own.v6);
    }
    names.sets = sets;
}

/// Reads `[service]`.
pub(super) fn read_services(item: Item<'_>, names: &mut Names, reader: &mut Reader<'_>) {
    let Some(table) = reader.table(item) else { return };
    let mut all = Lists::new();
    for (name, span, item) in table.rest() {
        let place = reader.place_of(&span);
        if Service::is_inline(&name) {
            reader.mistakes.at(&place, &item.path, format!("{name:?} is the name of a protocol"));
        } else {
            good_name(&name, &place, &item.path, "service", reader.mistakes);
        }
        let (mut services, mut includes) = (Vec::new(), Vec::new());
        for (text, path) in strings(item, reader) {
            match Service::is_inline(&text).then(|| Service::parse(&text)) {
                None => includes.push((text, path)),
                Some(Ok(service)) => services.push(service),
                Some(Err(wrong)) => wrong.note(&text.place, &path, reader.mistakes),
            }
        }
        all.add(name.clone(), NamedService { name, services, place }, includes);
    }
    let known: Vec<&str> = all.lists.iter().map(|named| named.name.as_str()).collect();
    let includes = resolve(&all.includes, &all.by_name, |text, path| {
        unknown_service(text, path, known.iter().copied(), reader.mistakes);
    });
    let mut lists = all.lists;
    for i in in_order(includes.clone(), |from, place| {
        let message = format!("the service {:?} includes itself", lists[from].name);
        reader.mistakes.at(place, &format!("service.{}", lists[from].name), message);
    }) {
        let mut services = std::mem::take(&mut lists[i].services);
        for (from, _) in &includes[i] {
            services.extend_from_slice(&lists[*from].services);
        }
        dedupe(&mut services);
        lists[i].services = services;
    }
    names.services = lists;
}

/// The strings of a list (or the only one), each with its key.
fn strings(item: Item<'_>, reader: &mut Reader<'_>) -> Vec<(At<String>, String)> {
    let items = if item.is_list() { item.elements() } else { vec![item] };
    let read = |item: Item<'_>| {
        let path = item.path.clone();
        Some((At::<String>::from_toml(item, reader)?, path))
    };
    items.into_iter().filter_map(read).collect()
}

/// A name that can be written behind `@` and in messages without doubt.
fn good_name(name: &str, place: &Place, key: &str, what: &str, mistakes: &mut Mistakes) {
    if !is_word(name) || name == "any" {
        let message = format!("{name:?} cannot be the name of a {what}");
        mistakes.with_help(place, key, message, "use letters, digits, \"-\", \"_\" and \".\", and not \"any\"");
    }
}

/// Letters, digits, `-`, `_` and `.`.
pub(super) fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
}

/// Reads `{ file = "list.txt" }`.
fn read_file_set(item: Item<'_>, blocks: &mut Blocks, reader: &mut Reader<'_>) {
    let Some(mut table): Option<Table<'_>> = reader.table(item) else { return };
    let key = table.path_of("file");
    let file = table.key::<At<String>>("file", None, reader);
    table.finish(reader);
    let Some(file) = file else { return };
    let directory = Path::new(reader.source.path()).parent().unwrap_or(Path::new(""));
    let path = directory.join(&file.value);
    let shown = path.display().to_string();
    // Only what has an end: reading a pipe or a device might never return.
    let text = match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => Err("it is not a regular file".to_owned()),
        Ok(_) => fs::read_to_string(&path).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match text {
        Ok(text) => read_lines(&shown, &text, &key, blocks, reader.mistakes),
        Err(error) => reader.mistakes.at(&file.place, &key, format!("cannot read {shown:?}: {error}")),
    }
}

/// Reads a list file: one address, prefix or range a line; `#` begins a comment.
fn read_lines(path: &str, text: &str, key: &str, blocks: &mut Blocks, mistakes: &mut Mistakes) {
    let mut wrong: Vec<(usize, Wrong)> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.split('#').next().unwrap_or_default();
        let entry = content.trim();
        if !entry.is_empty()
            && let Err(error) = blocks.add(entry)
        {
            wrong.push((start + content.len() - content.trim_start().len(), error));
        }
        start += line.len();
    }
    if wrong.is_empty() {
        return;
    }
    let source = Source::new(path, text);
    if let Some((at, _)) = wrong.get(MOST_OF_A_FILE) {
        let message = format!("and {} more lines that are wrong", wrong.len() - MOST_OF_A_FILE);
        mistakes.at(&source.place(*at), key, message);
    }
    for (at, wrong) in wrong.into_iter().take(MOST_OF_A_FILE) {
        wrong.note(&source.place(at), key, mistakes);
    }
}

/// The indices of included lists; names that do not exist go to `unknown`.
fn resolve(
    includes: &[Vec<(At<String>, String)>],
    by_name: &HashMap<String, usize>,
    mut unknown: impl FnMut(&At<String>, &str),
) -> Vec<Vec<(usize, Place)>> {
    let mut resolved = Vec::new();
    for list in includes {
        let mut indices = Vec::new();
        for (text, path) in list {
            match by_name.get(&text.value) {
                Some(index) => indices.push((*index, text.place.clone())),
                None => unknown(text, path),
            }
        }
        resolved.push(indices);
    }
    resolved
}

/// An order in which every list comes behind those it includes. Each cycle is given to `cycle` once, as the list that closes
/// it and the place where it does, and is then cut there.
fn in_order(mut includes: Vec<Vec<(usize, Place)>>, mut cycle: impl FnMut(usize, &Place)) -> Vec<usize> {
    let mut order = Vec::new();
    let (mut done, mut on_stack) = (vec![false; includes.len()], vec![false; includes.len()]);
    for root in 0..includes.len() {
        // The lists being worked on, each included by the one below: an explicit stack, since chains may be long.
        let mut stack = if done[root] { Vec::new() } else { vec![root] };
        while let Some(&list) = stack.last() {
            on_stack[list] = true;
            match includes[list].pop() {
                Some((next, place)) if on_stack[next] => cycle(list, &place),
                Some((next, _)) if !done[next] => stack.push(next),
                Some(_) => {}
                None => {
                    stack.pop();
                    on_stack[list] = false;
                    done[list] = true;
                    order.push(list);
                }
            }
        }
    }
    order
}
