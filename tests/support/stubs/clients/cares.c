/* c-ares. Reads and prints the lines that libc.c describes; with the argument "edns" it sends an OPT. */
#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>

enum { CLASS_IN = 1, TYPE_SRV = 33 };

static void failed(int status)
{
    switch (status) {
    case ARES_ENOTFOUND: puts("FAILED NOTFOUND"); break;
    case ARES_ENODATA: puts("FAILED NODATA"); break;
    case ARES_ESERVFAIL: puts("FAILED AGAIN"); break;
    default: printf("FAILED %s\n", ares_strerror(status));
    }
}

static void on_addresses(void *unused, int status, int timeouts, struct ares_addrinfo *list)
{
    (void)unused;
    (void)timeouts;
    if (status != ARES_SUCCESS) {
        failed(status);
        return;
    }
    fputs("OK", stdout);
    for (struct ares_addrinfo_node *next = list->nodes; next; next = next->ai_next) {
        char text[NI_MAXHOST];
        getnameinfo(next->ai_addr, next->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
        printf(" %s", text);
    }
    puts("");
    ares_freeaddrinfo(list);
}

static void on_services(void *unused, int status, int timeouts, unsigned char *reply, int length)
{
    struct ares_srv_reply *list = NULL;
    (void)unused;
    (void)timeouts;
    if (status == ARES_SUCCESS)
        status = ares_parse_srv_reply(reply, length, &list);
    if (status != ARES_SUCCESS) {
        failed(status);
        return;
    }
    fputs("OK", stdout);
    for (struct ares_srv_reply *next = list; next; next = next->next)
        printf(" %d,%d,%d,%s", next->priority, next->weight, next->port, next->host);
    puts("");
    ares_free_data(list);
}

static void on_owner(void *unused, int status, int timeouts, char *name, char *service)
{
    (void)unused;
    (void)timeouts;
    (void)service;
    if (status == ARES_SUCCESS)
        printf("OK %s\n", name);
    else
        failed(status);
}

static void run(ares_channel channel)
{
    for (;;) {
        fd_set readable, writable;
        struct timeval wait;
        FD_ZERO(&readable);
        FD_ZERO(&writable);
        int count = ares_fds(channel, &readable, &writable);
        if (count == 0)
            return;
        select(count, &readable, &writable, NULL, ares_timeout(channel, NULL, &wait));
        ares_process(channel, &readable, &writable);
    }
}

int main(int count, char **arguments)
{
    char verb[16], name[300];
    int mask = 0;
    struct ares_options options = { 0 };
    if (count > 1 && !strcmp(arguments[1], "edns")) {
        options.flags = ARES_FLAG_EDNS;
        options.ednspsz = 1232;
        mask = ARES_OPT_FLAGS | ARES_OPT_EDNSPSZ;
    }
    ares_library_init(ARES_LIB_INIT_ALL);
    while (scanf("%15s %299s", verb, name) == 2) {
        ares_channel channel;
        int status = ares_init_options(&channel, &options, mask);
        if (status != ARES_SUCCESS) {
            failed(status);
            return 1;
        }
        if (!strcmp(verb, "addresses")) {
            struct ares_addrinfo_hints hints = { .ai_family = AF_UNSPEC };
            ares_getaddrinfo(channel, name, NULL, &hints, on_addresses, NULL);
        } else if (!strcmp(verb, "services")) {
            ares_query(channel, name, CLASS_IN, TYPE_SRV, on_services, NULL);
        } else if (!strcmp(verb, "owner")) {
            struct sockaddr_in address = { .sin_family = AF_INET };
            inet_pton(AF_INET, name, &address.sin_addr);
            ares_getnameinfo(channel, (struct sockaddr *)&address, sizeof address,
                ARES_NI_LOOKUPHOST | ARES_NI_NAMEREQD, on_owner, NULL);
        } else {
            puts("FAILED unknown verb");
        }
        run(channel);
        ares_destroy(channel);
        fflush(stdout);
    }
    ares_library_cleanup();
    return 0;
}
