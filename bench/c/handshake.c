// The limit: what a client of libssl with nothing around it spends on a handshake that is checked like ours.
//
//   handshake ROOTS.pem HOST PORT [--cert FILE --key FILE] [--resume] [--context-each] [--ops N]
//
// With --ops it does N handshakes and ends. Without, it reads a number of operations from each line of standard input
// and answers with one line of JSON: { cpuMicros, wallMicros, facts }.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static const char *roots, *host, *cert, *key;
static int port, resume, context_each;

static SSL_SESSION *newest;
static long done, resumed;
static unsigned long long sent, received;
static char cipher[64];

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  ERR_print_errors_fp(stderr);
  exit(1);
}

// The policy's own lists: the ClientHello is the one our client sends.
static const char *SUITES =
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA256";
static const char *CURVES = "X25519:P-256:P-384";

static int keep_newest(SSL *ssl, SSL_SESSION *session) {
  (void)ssl;
  if (newest != NULL) SSL_SESSION_free(newest);
  newest = session;
  return 1;
}

static SSL_CTX *make_context(void) {
  SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
  if (ctx == NULL) fail("SSL_CTX_new");
  if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION) != 1 || SSL_CTX_set_cipher_list(ctx, SUITES) != 1 ||
      SSL_CTX_set1_groups_list(ctx, CURVES) != 1)
    fail("policy");
  if (SSL_CTX_load_verify_locations(ctx, roots, NULL) != 1) fail(roots);
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
  if (cert != NULL && (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1 ||
                       SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1))
    fail(cert);
  if (resume) {
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(ctx, keep_newest);
  }
  return ctx;
}

static void handshake(SSL_CTX *shared) {
  SSL_CTX *ctx = context_each ? make_context() : shared;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail("connect");

  SSL *ssl = SSL_new(ctx);
  if (ssl == NULL || SSL_set_fd(ssl, fd) != 1 || SSL_set_tlsext_host_name(ssl, host) != 1 ||
      SSL_set1_host(ssl, host) != 1)
    fail("SSL_new");
  SSL_set_hostflags(ssl, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (resume && newest != NULL && SSL_set_session(ssl, newest) != 1) fail("SSL_set_session");
  if (SSL_connect(ssl) != 1) fail("SSL_connect");

  done++;
  if (SSL_session_reused(ssl)) resumed++;
  strncpy(cipher, SSL_get_cipher_name(ssl), sizeof cipher - 1);
  sent += BIO_number_written(SSL_get_wbio(ssl));
  received += BIO_number_read(SSL_get_rbio(ssl));
  // Or OpenSSL would take the connection for a broken one and its session with it.
  SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
  SSL_free(ssl);
  close(fd);
  if (context_each) SSL_CTX_free(ctx);
}

static double cpu_micros(void) {
  struct rusage use;
  getrusage(RUSAGE_SELF, &use);
  return 1e6 * (use.ru_utime.tv_sec + use.ru_stime.tv_sec) + use.ru_utime.tv_usec + use.ru_stime.tv_usec;
}

static double wall_micros(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e6 * now.tv_sec + now.tv_nsec / 1e3;
}

int main(int argc, char **argv) {
  long ops = -1;
  if (argc == 2 && strcmp(argv[1], "--version") == 0) {
    printf("%s\n", OpenSSL_version(OPENSSL_VERSION));
    return 0;
  }
  if (argc < 4) fail("usage: handshake ROOTS.pem HOST PORT [options]");
  roots = argv[1];
  host = argv[2];
  port = atoi(argv[3]);
  for (int i = 4; i < argc; i++) {
    if (strcmp(argv[i], "--resume") == 0) resume = 1;
    else if (strcmp(argv[i], "--context-each") == 0) context_each = 1;
    else if (i + 1 == argc) fail("an option has no value");
    else if (strcmp(argv[i], "--cert") == 0) cert = argv[++i];
    else if (strcmp(argv[i], "--key") == 0) key = argv[++i];
    else if (strcmp(argv[i], "--ops") == 0) ops = atol(argv[++i]);
    else fail("unknown option");
  }
  if ((cert == NULL) != (key == NULL)) fail("--cert and --key belong together");

  SSL_CTX *shared = make_context();
  // The first handshake of a process is never a resumed one.
  if (resume) {
    handshake(shared);
    done = resumed = 0;
  }
  if (ops >= 0) {
    for (long i = 0; i < ops; i++) handshake(shared);
    return 0;
  }
  while (scanf("%ld", &ops) == 1) {
    done = resumed = 0;
    sent = received = 0;
    double wall = wall_micros(), cpu = cpu_micros();
    for (long i = 0; i < ops; i++) handshake(shared);
    cpu = cpu_micros() - cpu;
    wall = wall_micros() - wall;
    printf("{\"cpuMicros\":%.0f,\"wallMicros\":%.0f,\"facts\":{\"done\":%ld,\"resumed\":%ld,\"protocol\":\"TLSv1.2\","
           "\"cipher\":\"%s\",\"sent\":%llu,\"received\":%llu}}\n",
           cpu, wall, done, resumed, cipher, done ? sent / done : 0, done ? received / done : 0);
    fflush(stdout);
  }
  return 0;
}
