/* Passes the first time it sees a byte 20 that is not 0xee, and makes it so: it must not remember, nor change the packet. */
__attribute__((section("flowgate")))
int mark(unsigned char *frame, unsigned length)
{
	if (frame[20] == 0xee)
		return 0;
	frame[20] = 0xee;
	return 1;
}
