/* Passes frames whose byte 100 is not zero: of a shorter frame it never is. */
__attribute__((section("flowgate")))
int tail(const unsigned char *frame, unsigned length) { return frame[100]; }
