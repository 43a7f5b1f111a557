/* The C library's stub resolver. Built against glibc, and statically against musl.
 *
 * Reads "VERB NAME" lines and prints one line for each, as the other clients do:
 *   addresses NAME   getaddrinfo    OK ADDRESS ...
 *   services NAME    res_query      OK PRIORITY,WEIGHT,PORT,TARGET ...
 *   owner ADDRESS    getnameinfo    OK NAME
 * or FAILED with NOTFOUND, NODATA, AGAIN, or what else the library says. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static void failed(int code)
{
    switch (code) {
    case EAI_NONAME: puts("FAILED NOTFOUND"); break;
#ifdef EAI_NODATA
    case EAI_NODATA: puts("FAILED NODATA"); break;
#endif
    case EAI_AGAIN: puts("FAILED AGAIN"); break;
    default: printf("FAILED %s\n", gai_strerror(code));
    }
}

static void addresses(const char *name)
{
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *list;
    int code = getaddrinfo(name, NULL, &hints, &list);
    if (code) {
        failed(code);
        return;
    }
    fputs("OK", stdout);
    for (struct addrinfo *next = list; next; next = next->ai_next) {
        char text[NI_MAXHOST];
        getnameinfo(next->ai_addr, next->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
        printf(" %s", text);
    }
    puts("");
    freeaddrinfo(list);
}

static void services(const char *name)
{
    unsigned char reply[4096];
    int length = res_query(name, ns_c_in, ns_t_srv, reply, sizeof reply);
    ns_msg message;
    if (length < 0) {
        int code = h_errno;
        printf("FAILED %s\n", code == HOST_NOT_FOUND ? "NOTFOUND"
            : code == NO_DATA ? "NODATA" : code == TRY_AGAIN ? "AGAIN" : "OTHER");
        return;
    }
    if (ns_initparse(reply, length, &message)) {
        puts("FAILED reply cannot be read");
        return;
    }
    fputs("OK", stdout);
    for (int n = 0; n < ns_msg_count(message, ns_s_an); n++) {
        ns_rr record;
        char target[NS_MAXDNAME];
        if (ns_parserr(&message, ns_s_an, n, &record) || ns_rr_type(record) != ns_t_srv)
            continue;
        const unsigned char *data = ns_rr_rdata(record);
        dn_expand(reply, reply + length, data + 6, target, sizeof target);
        printf(" %d,%d,%d,%s", ns_get16(data), ns_get16(data + 2), ns_get16(data + 4), target);
    }
    puts("");
}

static void owner(const char *text)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    char name[NI_MAXHOST];
    inet_pton(AF_INET, text, &address.sin_addr);
    int code = getnameinfo((struct sockaddr *)&address, sizeof address, name, sizeof name, NULL, 0,
        NI_NAMEREQD);
    if (code)
        failed(code);
    else
        printf("OK %s\n", name);
}

int main(void)
{
    char verb[16], name[300];
    while (scanf("%15s %299s", verb, name) == 2) {
        if (!strcmp(verb, "addresses"))
            addresses(name);
        else if (!strcmp(verb, "services"))
            services(name);
        else if (!strcmp(verb, "owner"))
            owner(name);
        else
            puts("FAILED unknown verb");
        fflush(stdout);
    }
    return 0;
}
