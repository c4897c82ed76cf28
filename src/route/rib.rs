mod buckets;
mod prefixes;
mod slab;
mod slots;
