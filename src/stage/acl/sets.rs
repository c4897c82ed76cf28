//! The algebra under `lint`: sets of numbers, products of them, and the search for what a union of products leaves uncovered.
//!
//! Owns sets and search; knows nothing of rules. Everything is exact: where the work becomes too much, the search says so.

use std::collections::BTreeSet;
use std::rc::Rc;

/// First and last number of a range.
pub type Range = (u128, u128);

/// Numbers: sorted ranges that neither overlap nor touch. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set(Rc<[Range]>);

impl Set {
    /// The union of ranges.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Set {
        let mut sorted: Vec<Range> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Set(merged.into())
    }

    /// One number.
    pub fn one(number: u128) -> Set {
        Set([(number, number)].into())
    }

    /// Its ranges, in order.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if a number is in it.
    pub fn contains(&self, number: u128) -> bool {
        self.behind(number).first().is_some_and(|range| range.0 <= number)
    }

    /// The ranges that do not end before `number`.
    fn behind(&self, number: u128) -> &[Range] {
        match &*self.0 {
            [only] if only.1 >= number => &self.0,
            all => &all[all.partition_point(|range| range.1 < number)..],
        }
    }

    /// The one with fewer ranges first.
    fn by_length<'s>(&'s self, other: &'s Set) -> (&'s Set, &'s Set) {
        if self.0.len() <= other.0.len() { (self, other) } else { (other, self) }
    }

    /// True if both have a number in common.
    pub fn overlaps(&self, other: &Set) -> bool {
        let (few, many) = self.by_length(other);
        few.0.iter().any(|(first, last)| many.behind(*first).first().is_some_and(|range| range.0 <= *last))
    }

    /// True if all of `other` is in it.
    pub fn covers(&self, other: &Set) -> bool {
        let within = |(first, last): &Range| {
            self.behind(*first).first().is_some_and(|range| range.0 <= *first && *last <= range.1)
        };
        Rc::ptr_eq(&self.0, &other.0) || other.0.iter().all(within)
    }

    /// What both have in common.
    pub fn and(&self, other: &Set) -> Set {
        if other.covers(self) {
            return self.clone();
        }
        let (few, many) = self.by_length(other);
        let mut common = Vec::new();
        for (first, last) in &*few.0 {
            let met = many.behind(*first).iter().take_while(|range| range.0 <= *last);
            common.extend(met.map(|range| (range.0.max(*first), range.1.min(*last))));
        }
        Set(common.into())
    }

    /// What of it is not in `other`.
    pub fn minus(&self, other: &Set) -> Set {
        let mut left = Vec::new();
        for (first, last) in &*self.0 {
            let mut next = Some(*first);
            for hole in other.behind(*first).iter().take_while(|hole| hole.0 <= *last) {
                left.extend(next.filter(|next| *next < hole.0).map(|next| (next, hole.0 - 1)));
                next = hole.1.checked_add(1);
            }
            left.extend(next.filter(|next| next <= last).map(|next| (next, *last)));
        }
        Set(left.into())
    }

    /// About how many numbers are in it.
    fn size(&self) -> f64 {
        self.0.iter().map(|(first, last)| (last - first) as f64 + 1.0).sum()
    }
}

/// Dimensions of a product.
pub const DIMENSIONS: usize = 6;

/// A product of sets: all points with each coordinate in the set of its dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product(pub [Set; DIMENSIONS]);

impl Product {
    /// True if there is no point in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().any(Set::is_empty)
    }

    /// True if both have a point in common.
    pub fn overlaps(&self, other: &Product) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a.overlaps(b))
    }

    /// What both have in common.
    pub fn and(&self, other: &Product) -> Product {
        Product(std::array::from_fn(|at| self.0[at].and(&other.0[at])))
    }

    /// The dimensions in which it does not cover `other`.
    fn cuts(&self, other: &Product) -> Vec<usize> {
        (0..DIMENSIONS).filter(|at| !self.0[*at].covers(&other.0[*at])).collect()
    }

    /// How many ranges it has.
    fn length(&self) -> usize {
        self.0.iter().map(|set| set.ranges().len()).sum()
    }
}

/// The work allowed was not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// Splits within splits before the search gives up: it recurses.
const DEEPEST: usize = 200;

/// A search and what it used.
pub struct Search {
    /// Work left, in about the number of ranges looked at.
    pub work: u64,
    /// Those coverers, by their numbers, that left nothing uncovered; only these were needed.
    pub used: BTreeSet<usize>,
}

impl Search {
    /// A search that may do so much work.
    pub fn new(work: u64) -> Search {
        Search { work, used: BTreeSet::new() }
    }

    fn pay(&mut self, work: usize) -> Result<(), Exhausted> {
        self.work = self.work.checked_sub(work as u64).ok_or(Exhausted)?;
        Ok(())
    }

    /// A part of `product` that none of the numbered coverers meets; `None` if together they cover all of it.
    pub fn escape(&mut self, product: Product, coverers: &[(usize, &Product)]) -> Result<Option<Product>, Exhausted> {
        self.search(product, coverers.to_vec(), 0)
    }

    fn search(
        &mut self,
        mut product: Product,
        mut coverers: Vec<(usize, &Product)>,
        depth: usize,
    ) -> Result<Option<Product>, Exhausted> {
        if depth > DEEPEST {
            return Err(Exhausted);
        }
        if product.is_empty() {
            return Ok(None);
        }
        loop {
            let length = product.length();
            self.pay(coverers.iter().map(|(_, coverer)| coverer.length().min(length)).sum::<usize>() + length)?;
            coverers.retain(|(_, coverer)| coverer.overlaps(&product));
            let cuts: Vec<Vec<usize>> = coverers.iter().map(|(_, coverer)| coverer.cuts(&product)).collect();
            if let Some(whole) = cuts.iter().position(Vec::is_empty) {
                self.used.insert(coverers[whole].0);
                return Ok(None);
            }
            if let Some(free) = self.beside(&product, &coverers)? {
                return Ok(Some(free));
            }
            // What covers the product in all dimensions but one only shortens it: no split.
            let mut shorter = false;
            for ((number, coverer), cuts) in coverers.iter().zip(&cuts) {
                if let [at] = cuts[..]
                    && coverer.0[at].overlaps(&product.0[at])
                {
                    self.pay(product.0[at].ranges().len())?;
                    product.0[at] = product.0[at].minus(&coverer.0[at]);
                    self.used.insert(*number);
                    if product.0[at].is_empty() {
                        return Ok(None);
                    }
                    shorter = true;
                }
            }
            if !shorter {
                return self.split(product, coverers, cuts, depth);
            }
        }
    }

    /// A part of `product` whose coordinate in some dimension is in no coverer at all.
    fn beside(&mut self, product: &Product, coverers: &[(usize, &Product)]) -> Result<Option<Product>, Exhausted> {
        for at in 0..DIMENSIONS {
            let mut rest = product.0[at].clone();
            for (_, coverer) in coverers {
                if coverer.0[at].covers(&rest) {
                    rest = Set::of([]);
                    break;
                }
                self.pay(rest.ranges().len())?;
                rest = rest.minus(&coverer.0[at]);
            }
            if !rest.is_empty() {
                let mut free = product.clone();
                free.0[at] = rest;
                return Ok(Some(free));
            }
        }
        Ok(None)
    }

    /// Looks at what one coverer leaves, piece by piece: the one that cuts in the fewest dimensions and covers the most.
    fn split(
        &mut self,
        mut product: Product,
        coverers: Vec<(usize, &Product)>,
        mut cuts: Vec<Vec<usize>>,
        depth: usize,
    ) -> Result<Option<Product>, Exhausted> {
        let fewest = cuts.iter().map(Vec::len).min().unwrap_or(0);
        let share = |at: usize| -> f64 {
            let part = |dimension: &usize| {
                let whole = &product.0[*dimension];
                coverers[at].1.0[*dimension].and(whole).size() / whole.size()
            };
            cuts[at].iter().map(part).product()
        };
        let least = (0..coverers.len()).filter(|at| cuts[*at].len() == fewest).map(|at| (at, share(at)));
        let Some((best, _)) = least.reduce(|a, b| if b.1 > a.1 { b } else { a }) else { return Ok(Some(product)) };
        let (number, coverer) = coverers[best];
        for at in cuts.swap_remove(best) {
            let mut piece = product.clone();
            piece.0[at] = product.0[at].minus(&coverer.0[at]);
            if let Some(found) = self.search(piece, coverers.clone(), depth + 1)? {
                return Ok(Some(found));
            }
            product.0[at] = product.0[at].and(&coverer.0[at]);
        }
        self.used.insert(number);
        Ok(None)
    }
}

/// Finds, among many products, the few that may meet another.
pub struct Index {
    words: usize,
    dimensions: [Column; DIMENSIONS],
}

/// One dimension of an index: where its buckets begin, and who is in each.
struct Column {
    starts: Vec<u128>,
    members: Vec<Vec<u64>>,
}

/// The most buckets of a dimension.
const BUCKETS: usize = 128;

impl Index {
    /// An index of products, by their places; `None` is in it nowhere.
    pub fn new<'p>(products: impl ExactSizeIterator<Item = Option<&'p Product>> + Clone) -> Index {
        let words = products.len().div_ceil(64);
        let column = |dimension: usize| {
            let sets = || products.clone().map(|product| product.map(|product| &product.0[dimension]));
            let mut starts: Vec<u128> = sets().flatten().flat_map(|set| set.ranges().iter().map(|r| r.0)).collect();
            starts.push(0);
            starts.sort_unstable();
            starts.dedup();
            let step = starts.len().div_ceil(BUCKETS);
            let starts: Vec<u128> = starts.into_iter().step_by(step).collect();
            let mut column = Column { members: vec![vec![0; words]; starts.len()], starts };
            for (at, set) in sets().enumerate() {
                for range in set.map_or(&[][..], |set| set.ranges()) {
                    let touched = column.buckets(*range);
                    column.members[touched].iter_mut().for_each(|members| members[at / 64] |= 1 << (at % 64));
                }
            }
            column
        };
        Index { words, dimensions: std::array::from_fn(column) }
    }

    /// The places, in order, of all products that may meet this one, and perhaps of some that do not.
    pub fn near(&self, product: &Product) -> Vec<usize> {
        let mut near = vec![u64::MAX; self.words];
        for (column, set) in self.dimensions.iter().zip(&product.0) {
            let mut touched = vec![0; self.words];
            let mut next = 0;
            for range in set.ranges() {
                let buckets = column.buckets(*range);
                for members in &column.members[buckets.start.max(next)..buckets.end] {
                    touched.iter_mut().zip(members).for_each(|(touched, members)| *touched |= members);
                }
                next = buckets.end;
            }
            near.iter_mut().zip(&touched).for_each(|(near, touched)| *near &= touched);
        }
        let places = |(word, bits): (usize, &u64)| {
            let bits = *bits;
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit)
        };
        near.iter().enumerate().filter(|(_, bits)| **bits != 0).flat_map(places).collect()
    }
}

impl Column {
    fn buckets(&self, range: Range) -> std::ops::Range<usize> {
        let below = |number: u128| self.starts.partition_point(|start| *start <= number);
        below(range.0) - 1..below(range.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Product {
        /// True if a point is in it.
        fn contains(&self, point: &[u128; DIMENSIONS]) -> bool {
            self.0.iter().zip(point).all(|(set, number)| set.contains(*number))
        }
    }

    /// Numbers below 64, as bits and as a set.
    fn set() -> impl Strategy<Value = (u64, Set)> {
        any::<(u64, u64)>().prop_map(|(a, b)| {
            let bits = a & b;
            (bits, Set::of((0..64).filter(|n| bits >> n & 1 != 0).map(|n| (n, n))))
        })
    }

    fn bits(set: &Set) -> u64 {
        let bits = (0..64).filter(|n| set.contains(*n)).fold(0, |bits, n| bits | 1 << n);
        assert_eq!(*set, Set::of(set.ranges().to_vec()), "ranges neither overlap nor touch");
        bits
    }

    proptest! {
        #[test]
        fn sets_are_sets((a, left) in set(), (b, right) in set()) {
            prop_assert_eq!(bits(&left.and(&right)), a & b);
            prop_assert_eq!(bits(&left.minus(&right)), a & !b);
            prop_assert_eq!(left.overlaps(&right), a & b != 0);
            prop_assert_eq!(left.covers(&right), b & !a == 0);
            prop_assert_eq!(left.is_empty(), a == 0);
        }

        /// In three dimensions of four numbers each.
        #[test]
        fn what_escapes_is_covered_by_none(
            product in prop::array::uniform3(1u64..16),
            coverers in prop::collection::vec(prop::array::uniform3(1u64..16), 0..12),
        ) {
            let of = |masks: [u64; 3]| {
                Product(std::array::from_fn(|at| {
                    let mask = masks.get(at).copied().unwrap_or(1);
                    Set::of((0..4).filter(|n| mask >> n & 1 != 0).map(|n| (n, n)))
                }))
            };
            let whole = of(product);
            let all: Vec<Product> = coverers.into_iter().map(of).collect();
            let points = (0..64u128).map(|n| [n % 4, n / 4 % 4, n / 16, 0, 0, 0]).filter(|p| whole.contains(p));
            let open = points.clone().filter(|point| !all.iter().any(|coverer| coverer.contains(point))).count();
            let numbered: Vec<(usize, &Product)> = all.iter().enumerate().collect();
            let mut search = Search::new(u64::MAX);
            match search.escape(whole.clone(), &numbered).expect("there is no limit") {
                Some(free) => {
                    prop_assert!(!free.is_empty() && open > 0);
                    for point in points.clone().filter(|point| free.contains(point)) {
                        prop_assert!(!all.iter().any(|coverer| coverer.contains(&point)));
                    }
                    prop_assert!(points.clone().any(|point| free.contains(&point)));
                }
                None => {
                    prop_assert_eq!(open, 0);
                    let mut points = points.clone();
                    prop_assert!(points.all(|point| search.used.iter().any(|used| all[*used].contains(&point))));
                }
            }
            let near = Index::new(all.iter().map(Some)).near(&whole);
            prop_assert!((0..all.len()).all(|at| near.contains(&at) || !all[at].overlaps(&whole)));
        }
    }

    #[test]
    fn the_edges_of_numbers() {
        let all = Set::of([(0, u128::MAX)]);
        assert_eq!(all.minus(&Set::one(u128::MAX)), Set::of([(0, u128::MAX - 1)]));
        assert_eq!(all.minus(&Set::one(0)), Set::of([(1, u128::MAX)]));
        assert!(all.minus(&all).is_empty() && !all.overlaps(&Set::of([])));
    }

    #[test]
    fn too_much_work_is_told() {
        let product = Product(std::array::from_fn(|_| Set::of([(0, 9)])));
        let part = Product(std::array::from_fn(|_| Set::of([(0, 8)])));
        assert_eq!(Search::new(3).escape(product, &[(0, &part)]), Err(Exhausted));
    }
}
