/* Drops TCP to port 9999 over IPv4 and passes the rest. */
__attribute__((section("flowgate")))
int drop_9999(const unsigned char *frame, unsigned length)
{
	unsigned ip_header;

	if (length < 14 + 20 || frame[12] != 0x08 || frame[13] != 0x00 || frame[14 + 9] != 6)
		return 1;
	ip_header = (frame[14] & 0x0f) * 4;
	if (length < 14 + ip_header + 4)
		return 1;
	return !(frame[14 + ip_header + 2] == 9999 >> 8 && frame[14 + ip_header + 3] == (9999 & 0xff));
}
