/* Preloaded into h2load, which has no option for a client certificate: every TLS context it makes gets the
   SVID named by CLIENT_CERT and CLIENT_KEY. Without it the load would have to pass another proxy first, and that
   proxy, not the one under test, would set the pace of the fast rivals and half of every latency.
   Fails loudly: a load without certificate would be refused by all rivals, only later and less clearly. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *(*make)(const void *);
typedef int (*use_chain)(void *, const char *);
typedef int (*use_key)(void *, const char *, int);

void *SSL_CTX_new(const void *method) {
  make real = (make)dlsym(RTLD_NEXT, "SSL_CTX_new");
  use_chain chain = (use_chain)dlsym(RTLD_NEXT, "SSL_CTX_use_certificate_chain_file");
  use_key key = (use_key)dlsym(RTLD_NEXT, "SSL_CTX_use_PrivateKey_file");
  const char *chain_file = getenv("CLIENT_CERT"), *key_file = getenv("CLIENT_KEY");
  void *context = real ? real(method) : NULL;
  if (!context || !chain || !key || !chain_file || !key_file || chain(context, chain_file) != 1 ||
      key(context, key_file, 1) != 1) {
    fprintf(stderr, "h2load_mtls: cannot load the client certificate\n");
    abort();
  }
  return context;
}
