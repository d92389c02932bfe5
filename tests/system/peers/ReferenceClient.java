import java.io.File;
import java.net.InetAddress;
import java.security.PrivateKey;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import net.handle.hdllib.*;

/**
 * The reference Java client library against one node. Prints "ok" or "FAIL" and what, a line each.
 *
 * Arguments: IP address, Handle port, prefix, the secret at 300:PREFIX/ADMIN, and a file with the
 * private key at 301:PREFIX/ADMIN. Modes 1 and 2 of session setup cannot be tried: the library asks
 * for a cipher "RSA/EBC/PKCS1" that no Java has.
 */
public final class ReferenceClient {
    private static final HandleResolver RESOLVER = new HandleResolver();
    private static int faults = 0;

    private final SiteInfo site;
    private final String prefix;
    private final AuthenticationInfo login;
    private final String name;

    private ReferenceClient(SiteInfo site, String prefix, AuthenticationInfo login, String name) {
        this.site = site;
        this.prefix = prefix;
        this.login = login;
        this.name = name;
    }

    public static void main(String[] given) throws Exception {
        InetAddress address = InetAddress.getByName(given[0]);
        int port = Integer.parseInt(given[1]);
        String prefix = given[2];
        byte[] admin = Util.encodeString(prefix + "/ADMIN");
        PrivateKey key = Util.getPrivateKeyFromFileWithPassphrase(new File(given[4]), null);
        List<AuthenticationInfo> logins = new ArrayList<>();
        logins.add(new SecretKeyAuthenticationInfo(admin, 300, Util.encodeString(given[3])));
        logins.add(new PublicKeyAuthenticationInfo(admin, 301, key));
        check("no word to the public roots", !RESOLVER.getConfiguration().isAutoUpdateRootInfo(), "");
        RESOLVER.setCheckSignatures(true);
        RESOLVER.setTcpTimeout(8000);

        AbstractRequest question =
            new GenericRequest(Common.BLANK_HANDLE, AbstractMessage.OC_GET_SITE_INFO, null);
        AbstractResponse told = RESOLVER.sendHdlTcpRequest(question, address, port);
        SiteInfo site = ((GetSiteInfoResponse) told).siteInfo;
        check("site", site.servers.length == 1 && site.servers[0].interfaces.length == 3, told);
        // The node takes administration over UDP too; it only does not offer it.
        for (Interface each : site.servers[0].interfaces) each.type = Interface.ST_ADMIN_AND_QUERY;
        RESOLVER.getConfiguration().setGlobalSites(new SiteInfo[] {site});

        int number = 0;
        for (String session : Arrays.asList("none", "plain", "encrypted")) {
            for (AuthenticationInfo login : logins) {
                for (int[] protocols : new int[][] {
                        {Interface.SP_HDL_TCP},
                        {Interface.SP_HDL_UDP, Interface.SP_HDL_TCP},
                        {Interface.SP_HDL_HTTP}}) {
                    RESOLVER.setPreferredProtocols(protocols);
                    RESOLVER.setSessionTracker(tracker(session));
                    String name = Interface.protocolName((byte) protocols[0]) + ", "
                        + Util.decodeString(login.getAuthType()) + ", session " + session + ": ";
                    ReferenceClient client = new ReferenceClient(site, prefix, login, name);
                    try {
                        client.tour(prefix + "/JAVA-" + ++number);
                    } catch (Exception fault) {
                        check(name + "tour", false, fault);
                    }
                }
            }
        }
        RESOLVER.setSessionTracker(null);
        RESOLVER.setPreferredProtocols(new int[] {Interface.SP_HDL_UDP, Interface.SP_HDL_TCP});
        HandleValue[] found = RESOLVER.resolveHandle(prefix + "/ADMIN", null, null);
        check("from the root", found.length > 0, found.length);
        for (String suffix : new String[] {"ADMIN", "NOBODY"}) {
            ResolutionRequest signed =
                new ResolutionRequest(Util.encodeString(prefix + "/" + suffix), null, null, null);
            signed.certify = true;
            signed.returnRequestDigest = true;
            AbstractResponse answer = RESOLVER.sendRequestToSite(signed, site);
            boolean there = suffix.equals("ADMIN");
            check("certified " + suffix, answer.responseCode == (there ? 1 : 100), answer);
        }
        System.out.println(faults + " faults");
        System.exit(faults == 0 ? 0 : 1);
    }

    private static ClientSessionTracker tracker(String session) throws Exception {
        if (session.equals("none")) return null;
        SessionSetupInfo setup = new SessionSetupInfo(); // Diffie-Hellman
        setup.encrypted = session.equals("encrypted");
        ClientSessionTracker tracker = new ClientSessionTracker();
        tracker.setSessionSetupInfo(setup);
        return tracker;
    }

    private static void check(String what, boolean right, Object got) {
        System.out.println((right ? "ok " : "FAIL ") + what + (right ? "" : ": " + got));
        if (!right) faults++;
    }

    private AbstractResponse expect(String what, int code, AbstractRequest asked) throws Exception {
        AbstractResponse answer = RESOLVER.sendRequestToSite(asked, site);
        check(name + what, answer.responseCode == code, answer);
        return answer;
    }

    private static HandleValue[] one(int index, String type, String data) {
        return new HandleValue[] {
            new HandleValue(index, Util.encodeString(type), Util.encodeString(data))};
    }

    private void tour(String handle) throws Exception {
        byte[] h = Util.encodeString(handle);
        HandleValue hidden = one(7, "NOTE", "for us")[0];
        hidden.setAnyoneCanRead(false);
        HandleValue[] made = {one(1, "URL", "https://example.com/")[0], hidden};
        expect("create", 1, new CreateHandleRequest(h, made, login));
        expect("create again", 101, new CreateHandleRequest(h, made, login));
        HandleValue[] mail = one(2, "EMAIL", "a@example.com");
        expect("add", 1, new AddValueRequest(h, mail, login));
        expect("add again", 201, new AddValueRequest(h, mail, login));
        expect("modify", 1, new ModifyValueRequest(h, one(2, "EMAIL", "b@example.com"), login));
        expect("modify nothing", 200, new ModifyValueRequest(h, one(9, "EMAIL", "b"), login));
        AbstractResponse read = expect("read", 1, new ResolutionRequest(h, null, null, login));
        HandleValue[] values = ((ResolutionResponse) read).getHandleValues();
        check(name + "public values", values.length == 2, Arrays.toString(values));
        check(name + "what was modified",
            values[1].getDataAsString().equals("b@example.com"), values[1]);
        ResolutionRequest all = new ResolutionRequest(h, null, null, login);
        all.ignoreRestrictedValues = false;
        values = ((ResolutionResponse) expect("read all", 1, all)).getHandleValues();
        check(name + "private values", values.length == 3, Arrays.toString(values));
        expect("remove", 1, new RemoveValueRequest(h, new int[] {2}, login));
        List<byte[]> listed = new ArrayList<>();
        RESOLVER.sendRequestToSite(
            new ListHandlesRequest(Util.encodeString("0.NA/" + prefix), login), site,
            part -> {
                if (part instanceof ListHandlesResponse) {
                    listed.addAll(Arrays.asList(((ListHandlesResponse) part).handles));
                }
            });
        boolean in = listed.stream().anyMatch(each -> Util.equalsCI(each, h));
        check(name + "list", in, listed.size() + " handles");
        expect("delete", 1, new DeleteHandleRequest(h, login));
        expect("gone", 100, new ResolutionRequest(h, null, null, login));
    }
}
