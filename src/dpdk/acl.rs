//! Classifier tables of rte_acl: keys in, the first matching rule of each out.
//!
//! Owns the life of a context and the layout of rules in memory. It knows nothing of packets or policy: fields are bytes of
//! a key, and rules are numbered in the order of their precedence.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dpdk_sys as sys;

use super::eal::{Eal, Lease};
use crate::packet::BATCH;

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// By its leading bits: [`Value::b`] says how many.
    Prefix,
    /// From [`Value::a`] to [`Value::b`], both included.
    Range,
}

/// A field of the key. The first field of a table is one byte long; those behind it come in groups of four adjacent bytes,
/// numbered upwards (rte_acl, "Packet Classification and Access Control" in DPDK's programmer's guide).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// How it is compared.
    pub compare: Compare,
    /// Bytes: 1, 2 or 4, most significant first in the key.
    pub size: u8,
    /// Group of four bytes it belongs to.
    pub group: u8,
    /// Offset in the key.
    pub offset: u32,
}

/// What a rule asks of one field, in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// The value, or the lower end.
    pub a: u32,
    /// How many bits count, or the upper end.
    pub b: u32,
}

/// Why a table could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// It would take more memory than allowed.
    TooLarge,
    /// The EAL, or the machine, has not enough memory left.
    NoMemory,
    /// rte_acl refused with this errno.
    Refused(i32),
    /// The EAL has been closed.
    Closed,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::TooLarge => f.write_str("the classifier does not fit in the memory it may take"),
            BuildError::NoMemory => f.write_str("DPDK has not enough memory left"),
            BuildError::Refused(errno) => write!(f, "rte_acl refused the rules (errno {errno})"),
            BuildError::Closed => f.write_str("DPDK has been closed"),
        }
    }
}

impl std::error::Error for BuildError {}

/// A built table, read-only from then on.
#[derive(Debug)]
pub struct Table {
    context: NonNull<sys::rte_acl_ctx>,
    key_len: usize,
    rules: usize,
    bytes: usize,
    algorithm: &'static str,
    /// Keeps the EAL's memory until the context is freed.
    _lease: Lease,
}

// SAFETY: after `build` the context is only read, by classify, which rte_acl allows from any number of threads.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// From the widest to the one that always works.
const ALGORITHMS: &[(sys::rte_acl_classify_alg, &str)] = &[
    (sys::RTE_ACL_CLASSIFY_AVX512X32, "avx512x32"),
    (sys::RTE_ACL_CLASSIFY_AVX512X16, "avx512x16"),
    (sys::RTE_ACL_CLASSIFY_AVX2, "avx2"),
    (sys::RTE_ACL_CLASSIFY_SSE, "sse"),
    (sys::RTE_ACL_CLASSIFY_NEON, "neon"),
    (sys::RTE_ACL_CLASSIFY_ALTIVEC, "altivec"),
    (sys::RTE_ACL_CLASSIFY_SCALAR, "scalar"),
];

/// Words of a rule in memory: `struct rte_acl_rule` and behind it one `struct rte_acl_field` per field, 16 bytes each.
const HEAD_WORDS: usize = size_of::<sys::rte_acl_rule>() / 8;
const FIELD_WORDS: usize = size_of::<sys::rte_acl_field>() / 8;
const _: () = assert!(HEAD_WORDS == 2 && FIELD_WORDS == 2 && size_of::<sys::rte_acl_rule_data>() == 12);

impl Table {
    /// The most rules a table takes.
    pub const MAX_RULES: usize = 1 << 22;

    /// Builds a table of the rules in `values` (`fields.len()` values each), the first taking precedence, in at most
    /// `max_bytes` of EAL memory. Blocks for up to some seconds; the work memory comes from malloc and is freed.
    pub fn build(eal: &'static Eal, fields: &[Field], values: &[Value], max_bytes: usize) -> Result<Table, BuildError> {
        static BUILDING: Mutex<()> = Mutex::new(());
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        assert!(!fields.is_empty() && fields.len() <= sys::RTE_ACL_MAX_FIELDS as usize);
        let rules = values.len() / fields.len();
        if rules > Table::MAX_RULES {
            return Err(BuildError::TooLarge);
        }
        let lease = eal.lease().map_err(|_| BuildError::Closed)?;
        // One at a time, so that the growth of the heap is this table's.
        let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heap_bytes();
        let words = HEAD_WORDS + FIELD_WORDS * fields.len();
        // The name must be the process's only one: rte_acl_create hands out an existing context of the same name.
        let name = CString::new(format!("fg{}", SERIAL.fetch_add(1, Ordering::Relaxed))).expect("digits");
        let parameters = sys::rte_acl_param {
            name: name.as_ptr(),
            socket_id: -1,
            rule_size: (words * 8) as u32,
            max_rule_num: rules as u32,
        };
        // SAFETY: the EAL has started and the lease keeps it; the parameters outlive the call.
        let context = unsafe { sys::rte_acl_create(&parameters) };
        let Some(context) = NonNull::new(context) else { return Err(BuildError::NoMemory) };
        let key_len =
            fields.iter().map(|field| field.offset as usize + usize::from(field.size)).max().unwrap_or(0).max(4);
        let mut table = Table { context, key_len, rules, bytes: 0, algorithm: "scalar", _lease: lease };

        let image = image(fields.len(), values);
        // SAFETY: `image` holds `rules` rules of `rule_size` bytes each, laid out as rte_acl.h says; they are copied.
        check(unsafe { sys::rte_acl_add_rules(context.as_ptr(), image.as_ptr().cast(), rules as u32) })?;
        let mut config = sys::rte_acl_config {
            num_categories: 1,
            num_fields: fields.len() as u32,
            max_size: max_bytes,
            ..Default::default()
        };
        for (at, (def, field)) in config.defs.iter_mut().zip(fields).enumerate() {
            def.type_ = match field.compare {
                Compare::Prefix => sys::RTE_ACL_FIELD_TYPE_MASK as u8,
                Compare::Range => sys::RTE_ACL_FIELD_TYPE_RANGE as u8,
            };
            (def.size, def.input_index, def.offset, def.field_index) =
                (field.size, field.group, field.offset, at as u8);
        }
        // SAFETY: the context is this table's alone, and the config is complete.
        check(unsafe { sys::rte_acl_build(context.as_ptr(), &config) })?;
        table.choose_algorithm(&samples(fields, values));
        table.bytes = heap_bytes().saturating_sub(before);
        Ok(table)
    }

    /// Takes the algorithm that finds `keys` fastest: the widest vectors are not it on every CPU, since some gather slowly
    /// and some clock down.
    fn choose_algorithm(&mut self, keys: &[[u32; SAMPLE_WORDS]; BATCH]) {
        let mut best = (Duration::MAX, None);
        for (algorithm, name) in ALGORITHMS {
            // SAFETY: rte_acl refuses an algorithm that this CPU or the EAL's SIMD width does not allow.
            if unsafe { sys::rte_acl_set_ctx_classify(self.context.as_ptr(), *algorithm) } != 0 {
                continue;
            }
            let mut found = [0; BATCH];
            let mut trial = || {
                let began = Instant::now();
                (0..16).for_each(|_| self.classify(keys, &mut found));
                began.elapsed()
            };
            // The shortest of several: what disturbs a trial only lengthens it.
            let time = (0..12).map(|_| trial()).min().unwrap_or(Duration::MAX);
            if time < best.0 {
                best = (time, Some((*algorithm, *name)));
            }
        }
        if let (_, Some((algorithm, name))) = best {
            // SAFETY: allowed a moment ago.
            unsafe { sys::rte_acl_set_ctx_classify(self.context.as_ptr(), algorithm) };
            self.algorithm = name;
        }
    }

    /// For each key the first rule it matches, counted from 1, or 0. At most a batch of keys.
    #[inline]
    pub fn classify<const WORDS: usize>(&self, keys: &[[u32; WORDS]], found: &mut [u32; BATCH]) {
        assert!(keys.len() <= BATCH && self.key_len <= WORDS * 4);
        let mut data = [std::ptr::null::<u8>(); BATCH];
        for (pointer, key) in data.iter_mut().zip(keys) {
            *pointer = key.as_ptr().cast();
        }
        let (context, num) = (self.context.as_ptr(), keys.len() as u32);
        // SAFETY: `data` holds `num` pointers to keys of at least `key_len` bytes, `found` has room for `num` results, and
        // one category is what the context was built with. The only error is a wrong number of categories.
        unsafe { sys::rte_acl_classify(context, data.as_mut_ptr(), found.as_mut_ptr(), num, 1) };
    }

    /// How many rules it holds.
    pub fn rules(&self) -> usize {
        self.rules
    }

    /// EAL memory it takes, its copy of the rules included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The algorithm it is searched with: the fastest here, of those the CPU has and the EAL allows.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: made by rte_acl_create, and this handle is the only one.
        unsafe { sys::rte_acl_free(self.context.as_ptr()) };
    }
}

/// Words of a sample key: as long as any key may be.
const SAMPLE_WORDS: usize = 16;

/// Keys that rules all over the list match, for choosing the algorithm.
fn samples(fields: &[Field], values: &[Value]) -> [[u32; SAMPLE_WORDS]; BATCH] {
    let mut keys = [[0u32; SAMPLE_WORDS]; BATCH];
    let rules = (values.len() / fields.len()).max(1);
    for (at, key) in keys.iter_mut().enumerate() {
        let rule = values.chunks_exact(fields.len()).nth(at * rules / BATCH).unwrap_or_default();
        let mut bytes = [0u8; SAMPLE_WORDS * 4];
        for (field, value) in fields.iter().zip(rule) {
            let (offset, size) = (field.offset as usize, usize::from(field.size));
            if let Some(place) = bytes.get_mut(offset..offset + size) {
                place.copy_from_slice(&value.a.to_be_bytes()[4 - size..]);
            }
        }
        for (word, four) in key.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*four);
        }
    }
    keys
}

/// The rules as rte_acl wants them: category mask, priority and user data, then value and mask or range of each field.
fn image(fields: usize, values: &[Value]) -> Vec<u64> {
    let rules = values.len() / fields;
    let mut image = Vec::with_capacity(rules * (HEAD_WORDS + FIELD_WORDS * fields));
    for (index, rule) in values.chunks_exact(fields).enumerate() {
        let priority = sys::RTE_ACL_MAX_PRIORITY - index as u32;
        image.push(pair(1, priority));
        image.push(pair(index as u32 + 1, 0));
        image.extend(rule.iter().flat_map(|value| [u64::from(value.a), u64::from(value.b)]));
    }
    image
}

/// Two adjacent 32-bit members of a C struct.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn check(code: i32) -> Result<(), BuildError> {
    match -code {
        0 => Ok(()),
        libc::ERANGE => Err(BuildError::TooLarge),
        libc::ENOMEM => Err(BuildError::NoMemory),
        errno => Err(BuildError::Refused(errno)),
    }
}

/// Bytes allocated on the EAL's heaps.
fn heap_bytes() -> usize {
    // SAFETY: plain queries of an EAL that has started; the stats are a plain struct that the call fills.
    unsafe {
        (0..sys::rte_socket_count())
            .map(|index| {
                let mut stats = sys::rte_malloc_socket_stats::default();
                let known = sys::rte_malloc_get_socket_stats(sys::rte_socket_id_by_idx(index), &mut stats) == 0;
                if known { stats.heap_allocsz_bytes } else { 0 }
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field { compare: Compare::Prefix, size: 1, group: 0, offset: 0 },
        Field { compare: Compare::Prefix, size: 4, group: 1, offset: 4 },
        Field { compare: Compare::Range, size: 2, group: 2, offset: 8 },
        Field { compare: Compare::Range, size: 2, group: 2, offset: 10 },
    ];

    fn key(proto: u8, address: u32, ports: (u32, u32)) -> [u32; 3] {
        [u32::from(proto).swap_bytes().to_be(), address.to_be(), (ports.0 << 16 | ports.1).to_be()]
    }

    #[test]
    fn the_first_matching_rule_wins() {
        let eal = Eal::offline(128).expect("an EAL");
        let any = Value { a: 0, b: 65535 };
        #[rustfmt::skip]
        let rules = [
            Value { a: 6, b: 8 }, Value { a: 0x0a000000, b: 8 }, any, Value { a: 80, b: 90 },
            Value { a: 0, b: 0 }, Value { a: 0x0a010000, b: 16 }, any, any,
            Value { a: 6, b: 8 }, Value { a: 0, b: 0 }, Value { a: 1024, b: 65535 }, any,
        ];
        let table = Table::build(eal, FIELDS, &rules, 1 << 24).expect("built");
        let keys = [
            key(6, 0x0a010203, (5, 85)),
            key(17, 0x0a010203, (5, 85)),
            key(6, 0x0a010203, (5, 91)),
            key(6, 0xc0000201, (1024, 85)),
            key(6, 0xc0000201, (1023, 85)),
        ];
        let mut found = [9; BATCH];
        table.classify(&keys, &mut found);
        assert_eq!(found[..6], [1, 2, 2, 3, 0, 9]);
        assert!(table.bytes() > 0 && table.rules() == 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let eal = Eal::offline(128).expect("an EAL");
        let values: Vec<Value> = (0..2000u32)
            .flat_map(|n| {
                [
                    Value { a: 6, b: 8 },
                    Value { a: n.wrapping_mul(0x9e3779b9), b: 32 },
                    Value { a: 0, b: 65535 },
                    Value { a: n, b: 65535 },
                ]
            })
            .collect();
        assert_eq!(Table::build(eal, FIELDS, &values, 4096).unwrap_err(), BuildError::TooLarge);
    }
}
