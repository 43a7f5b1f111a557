import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.SocketTimeoutException;
import java.net.UnknownHostException;
import java.security.Security;
import java.util.ArrayList;
import java.util.Hashtable;
import java.util.List;
import javax.naming.Context;
import javax.naming.NameNotFoundException;
import javax.naming.NamingEnumeration;
import javax.naming.NamingException;
import javax.naming.ServiceUnavailableException;
import javax.naming.directory.Attribute;
import javax.naming.directory.DirContext;
import javax.naming.directory.InitialDirContext;

/**
 * InetAddress, which asks the C library, or with the argument "jndi" Java's own DNS client, which knows
 * no search path. Reads and prints the lines that libc.c describes.
 */
public class Stub {
    private static DirContext jndi;

    public static void main(String[] arguments) throws Exception {
        // InetAddress would answer from its own cache.
        Security.setProperty("networkaddress.cache.ttl", "0");
        Security.setProperty("networkaddress.cache.negative.ttl", "0");
        boolean own = arguments.length > 0 && arguments[0].equals("jndi");
        if (own) {
            Hashtable<String, String> environment = new Hashtable<>();
            environment.put(Context.INITIAL_CONTEXT_FACTORY, "com.sun.jndi.dns.DnsContextFactory");
            environment.put(Context.PROVIDER_URL, "dns://169.254.20.10/");
            jndi = new InitialDirContext(environment);
        }
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            System.out.println(own ? byJndi(words[0], words[1]) : byInetAddress(words[0], words[1]));
            System.out.flush();
        }
    }

    private static String byInetAddress(String verb, String name) {
        List<String> found = new ArrayList<>();
        try {
            if (verb.equals("addresses")) {
                for (InetAddress address : InetAddress.getAllByName(name)) {
                    found.add(address.getHostAddress());
                }
            } else {
                String owner = InetAddress.getByName(name).getCanonicalHostName();
                if (owner.equals(name)) {
                    return "FAILED NOTFOUND";
                }
                found.add(owner);
            }
        } catch (UnknownHostException error) {
            String text = error.getMessage();
            return "FAILED " + (text.contains("Name or service not known") ? "NOTFOUND"
                : text.contains("No address associated") ? "NODATA"
                : text.contains("Temporary failure") ? "AGAIN" : text);
        }
        return "OK " + String.join(" ", found);
    }

    private static String byJndi(String verb, String name) {
        List<String> found = new ArrayList<>();
        try {
            if (verb.equals("addresses")) {
                collect(name, "A", found);
                collect(name, "AAAA", found);
            } else if (verb.equals("services")) {
                collect(name, "SRV", found);
            } else {
                String[] octets = name.split("\\.");
                collect(octets[3] + "." + octets[2] + "." + octets[1] + "." + octets[0] + ".in-addr.arpa.",
                    "PTR", found);
            }
        } catch (NameNotFoundException error) {
            return "FAILED NOTFOUND";
        } catch (ServiceUnavailableException error) {
            return "FAILED AGAIN";
        } catch (NamingException error) {
            return "FAILED " + (error.getRootCause() instanceof SocketTimeoutException ? "TIMEOUT" : error);
        }
        return found.isEmpty() ? "FAILED NODATA" : "OK " + String.join(" ", found);
    }

    private static void collect(String name, String type, List<String> found) throws NamingException {
        Attribute records = jndi.getAttributes(name, new String[] {type}).get(type);
        if (records == null) {
            return;
        }
        NamingEnumeration<?> values = records.getAll();
        while (values.hasMore()) {
            // "0 25 80 target." for SRV; other types are one word.
            found.add(values.next().toString().replace(' ', ','));
        }
    }
}
