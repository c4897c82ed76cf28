/* Counts in a map, by a kernel helper: neither is to be had. */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static unsigned long (*bpf_ktime_get_ns)(void) = (void *)5;

struct {
	int (*type)[1];
} counts __attribute__((section(".maps"), used));

__attribute__((section("flowgate")))
int count(const unsigned char *frame, unsigned length)
{
	unsigned key = length;
	unsigned long *slot = bpf_map_lookup_elem(&counts, &key);

	if (slot)
		*slot = bpf_ktime_get_ns();
	return 1;
}
