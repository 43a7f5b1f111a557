// Go's own resolver. Reads and prints the lines that libc.c describes.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, name, _ := strings.Cut(lines.Text(), " ")
		found, err := ask(resolver, verb, name)
		if err != nil {
			fmt.Println("FAILED", kind(err))
		} else {
			fmt.Println("OK", strings.Join(found, " "))
		}
	}
}

func ask(resolver *net.Resolver, verb, name string) ([]string, error) {
	ctx := context.Background()
	switch verb {
	case "addresses":
		return resolver.LookupHost(ctx, name)
	case "owner":
		return resolver.LookupAddr(ctx, name)
	case "services":
		_, records, err := resolver.LookupSRV(ctx, "", "", name)
		var found []string
		for _, record := range records {
			found = append(found, fmt.Sprintf("%d,%d,%d,%s", record.Priority, record.Weight, record.Port, record.Target))
		}
		return found, err
	}
	return nil, errors.New("unknown verb")
}

// kind says what the error says about itself; Go does not tell NODATA from NXDOMAIN.
func kind(err error) string {
	var failure *net.DNSError
	switch {
	case errors.As(err, &failure) && failure.IsNotFound:
		return "NOTFOUND"
	case errors.As(err, &failure) && failure.IsTemporary && !failure.IsTimeout:
		return "AGAIN"
	}
	return err.Error()
}
