"""Python's socket module, or dnspython's stub resolver. Reads and prints the lines that libc.c describes."""

import socket
import sys


class Socket:
    KINDS = {socket.EAI_NONAME: "NOTFOUND", socket.EAI_NODATA: "NODATA", socket.EAI_AGAIN: "AGAIN"}

    def addresses(self, name):
        found = socket.getaddrinfo(name, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
        return [address[0] for *_, address in found]

    def owner(self, address):
        return [socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]]

    def kind(self, error):
        return self.KINDS.get(error.args[0], repr(error))


class Dnspython:
    def __init__(self):
        import dns.resolver

        self.dns = dns.resolver
        self.resolver = dns.resolver.Resolver()

    def addresses(self, name):
        found = []
        for record_type in "A", "AAAA":
            try:
                answer = self.resolver.resolve(name, record_type, search=True)
                found += [record.address for record in answer]
            except self.dns.NoAnswer as error:
                no_answer = error
        if not found:
            raise no_answer
        return found

    def services(self, name):
        found = self.resolver.resolve(name, "SRV")
        return [f"{srv.priority},{srv.weight},{srv.port},{srv.target}" for srv in found]

    def owner(self, address):
        return [str(record.target) for record in self.resolver.resolve_address(address)]

    def kind(self, error):
        kinds = {self.dns.NXDOMAIN: "NOTFOUND", self.dns.NoAnswer: "NODATA", self.dns.NoNameservers: "AGAIN"}
        return kinds.get(type(error), repr(error))


client = Dnspython() if "dnspython" in sys.argv else Socket()
for line in sys.stdin:
    verb, name = line.split()
    try:
        print("OK", *getattr(client, verb)(name), flush=True)
    except Exception as error:
        print("FAILED", client.kind(error), flush=True)
