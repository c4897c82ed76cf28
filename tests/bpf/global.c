/* Remembers something between packets, which a program cannot. */
static unsigned seen;

__attribute__((section("flowgate")))
int every_other(const unsigned char *frame, unsigned length) { return ++seen & 1; }
